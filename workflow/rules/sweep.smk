# The comparison of methods: `snakemake sweep` runs everything in workflow/sweep.yaml (another file: --config sweep=FILE), each run
# in a folder of its own, and gathers it in results/comparison. Nothing above depends on these rules. A run is repeated when its
# parameters change; a killed one goes on from its checkpoint. Code is not an input: an edit would throw hours away, so run.json
# records it instead and the page says when runs of different code stand side by side (docs/comparison.md).
from rtdmd.study.plan import load_plan, run_params

try:
    SWEEP_FILE = config.get("sweep", "workflow/sweep.yaml")
    SWEEP = load_plan(Path(SWEEP_FILE))
except UserError as error:
    raise WorkflowError(str(error)) from error


wildcard_constraints:
    run="|".join(name for name in SWEEP.runs() if name != "base"),
    seed=r"\d+",


def run_settings(wildcards):
    """The run's parameters and what is judged over time."""
    params = run_params(PARAMS, SWEEP, wildcards.get("run", "base"), int(wildcards.seed))
    return params.model_dump(mode="json") | {"points": SWEEP.points, "point_images": SWEEP.point_images}


rule sweep:
    input:
        "results/comparison/index.html",


rule sweep_base:
    output:
        SWEEP.folder + "/base-{seed}/run.json",
    log:
        "logs/sweep/base-{seed}.log",
    benchmark:
        "benchmarks/sweep/base-{seed}.tsv"
    conda:
        "../envs/python.yaml"
    threads: THREADS
    resources:
        mem_mb=6000,
        runtime=120,
    params:
        settings=run_settings,
        plan=SWEEP_FILE,
    message:
        "sweep: prompts, text and stage one of seed {wildcards.seed}, which its methods share"
    shell:
        "(python -m rtdmd sweep run base {wildcards.seed} --plan {params.plan}) 2>&1 | tee {log} >&2"


rule sweep_method:
    input:
        SWEEP.folder + "/base-{seed}/run.json",
    output:
        SWEEP.folder + "/{run}-{seed}/run.json",
    log:
        "logs/sweep/{run}-{seed}.log",
    benchmark:
        "benchmarks/sweep/{run}-{seed}.tsv"
    conda:
        "../envs/python.yaml"
    threads: THREADS
    resources:
        mem_mb=6000,
        runtime=120,
    params:
        settings=run_settings,
        plan=SWEEP_FILE,
    message:
        "sweep: {wildcards.run}, seed {wildcards.seed}"
    shell:
        "(python -m rtdmd sweep run {wildcards.run} {wildcards.seed} --plan {params.plan}) 2>&1 | tee {log} >&2"


rule sweep_gather:
    input:
        expand(SWEEP.folder + "/{run}-{seed}/run.json", run=SWEEP.runs(), seed=SWEEP.seeds),
    output:
        report("results/comparison/index.html", category="comparison", caption="../report/stage.rst"),
        report("results/comparison/table.csv", category="comparison", caption="../report/stage.rst"),
        "results/comparison/runs.csv",
        "results/comparison/contact_sheet.png",
    log:
        "logs/sweep/gather.log",
    conda:
        "../envs/python.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        plan=SWEEP_FILE,
    message:
        "sweep: table and page of the comparison"
    shell:
        "(python -m rtdmd sweep gather --plan {params.plan}) 2>&1 | tee {log} >&2"
