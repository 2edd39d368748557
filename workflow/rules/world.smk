# How the pinned teacher under data/world was made: `snakemake --cores 2 world` trains its parts again, from nothing
# (`make world`). Nothing above depends on these rules: the committed files are the pipeline's input, and the recipe is read when a
# part is asked for. Each part's threads are set in data/world/params.yaml, since they are part of the bytes.
from tools.world import PARTS as WORLD_PARTS
from tools.world.settings import load_world_params

RECIPE = when_asked(lambda: load_world_params().model_dump(mode="json"))


rule world:
    input:
        "results/world/manifest.json",


for name, part in WORLD_PARTS.items():

    rule:
        name:
            f"pretrain_{name}"
        input:
            "data/world/params.yaml",
            f"tools/world/{name}.py",
            *part.code,
            "rtdmd/world/render.py",
            expand("results/world/{before}/metrics.json", before=part.after),
        output:
            f"results/world/{name}/metrics.json",
        log:
            f"logs/pretrain_{name}.log",
        benchmark:
            f"benchmarks/pretrain_{name}.tsv"
        conda:
            "../envs/python.yaml"
        threads: lambda wildcards: RECIPE()["threads"]
        resources:
            mem_mb=part.mem_mb,
            runtime=part.minutes,
        params:
            part=name,
            settings=lambda wildcards, name=name: RECIPE()[name],
            seed=lambda wildcards: RECIPE()["seed"],
        message:
            f"world: {part.title}"
        shell:
            "(rtdmd world {params.part}) 2>&1 | tee {log} >&2"


rule pretrain_assemble:
    input:
        expand("results/world/{part}/metrics.json", part=WORLD_PARTS),
    output:
        "results/world/manifest.json",
    log:
        "logs/pretrain_assemble.log",
    benchmark:
        "benchmarks/pretrain_assemble.tsv"
    conda:
        "../envs/python.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    message:
        "world: pin the parts under data/world"
    shell:
        "(rtdmd world assemble) 2>&1 | tee {log} >&2"
