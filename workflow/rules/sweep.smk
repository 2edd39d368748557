# The comparison of methods: `snakemake sweep` runs everything in workflow/sweep.yaml (another file: --config sweep=FILE), each run
# in a folder of its own, and gathers it in the plan's `page`. Nothing above depends on these rules. A run is repeated when its
# parameters change; a killed one goes on from its checkpoint. Code is not an input: an edit would throw hours away, so run.json
# records it instead and the page says when runs of different code stand side by side (docs/results.md).
import re

from rtdmd.methods import METHODS
from rtdmd.study.plan import BASE, TEACHER, load_plan, settings_of

SWEEP_FILE = config.get("sweep", "workflow/sweep.yaml")
SWEEP = when_asked(lambda: load_plan(Path(SWEEP_FILE)))
SWEEP_SEEDS = when_asked(lambda: SWEEP().first_seeds(config.get("seeds")))  # --config seeds=2: the first two alone
SWEEP_SETTINGS = when_asked(lambda: settings_of(PARAMS, SWEEP()))  # of a run, by its wildcards
try:
    sweep_plan = load_plan(Path(SWEEP_FILE))
    SWEEP_FOLDER = sweep_plan.folder
    SWEEP_PAGE = sweep_plan.page
    SWEEP_FILES = sweep_plan.files()
    SWEEP_THREADS = sweep_plan.params.get("run", {}).get("threads", THREADS)
except UserError:
    SWEEP_FOLDER = ".rtdmd/sweep"  # of no run: whoever asks for one is told what is wrong with the file
    SWEEP_PAGE = "results/comparison"
    SWEEP_FILES = []
    SWEEP_THREADS = THREADS
SWEEP_BASE = f"{SWEEP_FOLDER}/{BASE}-{{seed}}/run.json"
SWEEP_RUN = f"{SWEEP_FOLDER}/{{run}}-{{seed}}/run.json"


wildcard_constraints:
    run="|".join(map(re.escape, (TEACHER, *METHODS))),
    seed=r"\d+",


rule sweep:
    input:
        f"{SWEEP_PAGE}/index.html",


rule sweep_base:
    output:
        SWEEP_BASE,
    log:
        "logs/sweep/base-{seed}.log",
    benchmark:
        "benchmarks/sweep/base-{seed}.tsv"
    conda:
        "../envs/python.yaml"
    threads: SWEEP_THREADS
    resources:
        mem_mb=6000,
        runtime=120,
    params:
        settings=lambda wildcards: SWEEP_SETTINGS()(wildcards),
        plan=SWEEP_FILE,
    message:
        "sweep: prompts, text and stage one of seed {wildcards.seed}, which its methods share"
    shell:
        "(python -m rtdmd sweep run base {wildcards.seed} --plan {params.plan:q}) 2>&1 | tee {log:q} >&2"


rule sweep_method:
    input:
        SWEEP_BASE,
    output:
        SWEEP_RUN,
    log:
        "logs/sweep/{run}-{seed}.log",
    benchmark:
        "benchmarks/sweep/{run}-{seed}.tsv"
    conda:
        "../envs/python.yaml"
    threads: SWEEP_THREADS
    resources:
        mem_mb=6000,
        runtime=120,
    params:
        settings=lambda wildcards: SWEEP_SETTINGS()(wildcards),
        plan=SWEEP_FILE,
    message:
        "sweep: {wildcards.run}, seed {wildcards.seed}"
    shell:
        "(python -m rtdmd sweep run {wildcards.run:q} {wildcards.seed} --plan {params.plan:q}) 2>&1 | tee {log:q} >&2"


rule sweep_gather:
    input:
        lambda wildcards: expand(SWEEP_RUN, run=SWEEP().runs(), seed=SWEEP_SEEDS()),
    output:
        report(f"{SWEEP_PAGE}/index.html", category="comparison", caption="../report/stage.rst"),
        report(f"{SWEEP_PAGE}/table.csv", category="comparison", caption="../report/stage.rst"),
        f"{SWEEP_PAGE}/runs.csv",
        f"{SWEEP_PAGE}/contact_sheet.png",
        *[f"{SWEEP_PAGE}/{name}" for name in SWEEP_FILES],
    log:
        "logs/sweep/gather.log",
    benchmark:
        "benchmarks/sweep/gather.tsv"
    conda:
        "../envs/python.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        plan=SWEEP_FILE,
        runs=lambda wildcards: [*SWEEP().runs(), *map(str, SWEEP_SEEDS())],  # a missing run alone does not remake a page that exists
    message:
        "sweep: table and page of the comparison"
    shell:
        "(python -m rtdmd sweep gather --plan {params.plan:q}) 2>&1 | tee {log:q} >&2"


rule sweep_variance:
    input:
        lambda wildcards: SWEEP_BASE.format(seed=SWEEP().seeds[0]),
    output:
        report(f"{SWEEP_PAGE}/variance.csv", category="comparison", caption="../report/stage.rst"),
    log:
        "logs/sweep/variance.log",
    benchmark:
        "benchmarks/sweep/variance.tsv"
    conda:
        "../envs/python.yaml"
    threads: SWEEP_THREADS
    resources:
        mem_mb=6000,
        runtime=180,
    params:
        folder=lambda wildcards, input: str(Path(input[0]).parent),
    message:
        "sweep: noise and bias of the reward's gradient on the base; `rtdmd sweep gather` then shows it"
    shell:
        '(cd {params.folder:q} && python -m rtdmd variance --out "$OLDPWD"/{output:q}) 2>&1 | tee {log:q} >&2'
