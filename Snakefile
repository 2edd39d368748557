# The whole run: prompts -> teacher's text -> stage one -> stage two -> evaluation -> report and model folder.
#
#   snakemake --cores all          everything, on the params.yaml of this folder (`make demo`)
#   snakemake train_acdmd          one stage and what it needs
#
# Stages, files and parameters are written in dvc.yaml alone (workflow/rules/common.smk reads them); either engine may drive.
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        [path for job in JOBS.values() for path in job.outputs],


include: "workflow/rules/stages.smk"
include: "workflow/rules/world.smk"
include: "workflow/rules/upload.smk"
include: "workflow/rules/sweep.smk"
include: "workflow/rules/experiments.smk"


onstart:
    end_future(JOBS)
    refuse_before_outputs_go()
