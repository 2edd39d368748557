# The published experiments: `snakemake experiment_table_2` runs every run of a table (`rtdmd experiments` lists them) and writes
# results/experiments/table_2. A job is one stage of one run, in the run's folder, with what `rtdmd plan` says that it needs; what
# several runs would compute alike is a job of the first of them. Nothing above depends on these rules, and the files of
# workflow/experiments.yaml are read when a table is asked for. Code is no input, as in the sweep.
from rtdmd.experiments import RUNS, TABLES
from rtdmd.experiments.jobs import ASKED, STAGES, Jobs

EXPERIMENTS = when_asked(Jobs.of)
EXPERIMENT_STAGE = ".rtdmd/experiments/{experiment}/.rtdmd/done/{step}.json"


wildcard_constraints:
    experiment="|".join(map(re.escape, RUNS)),
    step="|".join(STAGES),


rule experiment_stage:
    input:
        lambda wildcards: EXPERIMENTS().files(EXPERIMENTS().reads(wildcards.experiment, wildcards.step)),
    output:
        EXPERIMENT_STAGE,
    log:
        "logs/experiments/{experiment}-{step}.log",
    benchmark:
        "benchmarks/experiments/{experiment}-{step}.tsv"
    conda:
        "../envs/python.yaml"
    threads: lambda wildcards: EXPERIMENTS().threads(wildcards.experiment, wildcards.step)
    resources:
        **{name: asked_of(EXPERIMENTS, name) for name in ASKED},
    params:
        settings=lambda wildcards: EXPERIMENTS().keys[wildcards.experiment, wildcards.step],
    message:
        "experiments: {wildcards.step} of {wildcards.experiment}"
    shell:
        "(python -m rtdmd experiments --run {wildcards.experiment:q} {wildcards.step}) 2>&1 | tee {log:q} >&2"


for name in TABLES:

    rule:
        name:
            f"experiment_{name}"
        input:
            lambda wildcards, name=name: figures_of(EXPERIMENTS(), name, TABLES[name].runs()),
        output:
            report(f"results/experiments/{name}/index.html", category="experiments", caption="../report/stage.rst"),
            report(f"results/experiments/{name}/table.csv", category="experiments", caption="../report/stage.rst"),
        log:
            f"logs/experiments/{name}.log",
        benchmark:
            f"benchmarks/experiments/{name}.tsv"
        conda:
            "../envs/python.yaml"
        threads: 1
        resources:
            mem_mb=2000,
            runtime=10,
        params:
            table=name,
            runs=lambda wildcards, name=name: [*TABLES[name].runs()],  # a missing run alone does not remake a table that exists
        message:
            f"experiments: {TABLES[name].title}, published and ours"
        shell:
            "(python -m rtdmd experiments --gather {params.table}) 2>&1 | tee {log:q} >&2"
