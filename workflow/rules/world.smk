# How the pinned teacher under data/world was made: `snakemake --cores 2 world` trains its parts again, from nothing
# (`make world`). Nothing above depends on these rules: the committed files are the pipeline's input. Each part's threads
# are set in data/world/params.yaml, since they are part of the bytes.
from rtdmd.config.world import load_world_params

WORLD = load_world_params().model_dump(mode="json")


rule world:
    input:
        "results/world/manifest.json",


rule pretrain_text:
    input:
        "data/world/params.yaml",
        "rtdmd/world/pretrain_text.py",
    output:
        "results/world/text/metrics.json",
    log:
        "logs/pretrain_text.log",
    benchmark:
        "benchmarks/pretrain_text.tsv"
    conda:
        "../envs/python.yaml"
    threads: WORLD["threads"]
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        settings=WORLD["text"],
        seed=WORLD["seed"],
    message:
        "world: two text encoders learn to parse captions"
    shell:
        "(rtdmd world text) 2>&1 | tee {log} >&2"


rule pretrain_vae:
    input:
        "data/world/params.yaml",
        "rtdmd/world/pretrain_vae.py",
        "rtdmd/world/render.py",
    output:
        "results/world/vae/metrics.json",
    log:
        "logs/pretrain_vae.log",
    benchmark:
        "benchmarks/pretrain_vae.tsv"
    conda:
        "../envs/python.yaml"
    threads: WORLD["threads"]
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=WORLD["vae"],
        seed=WORLD["seed"],
    message:
        "world: the autoencoder"
    shell:
        "(rtdmd world vae) 2>&1 | tee {log} >&2"


rule pretrain_clip:
    input:
        "data/world/params.yaml",
        "rtdmd/world/pretrain_clip.py",
        "rtdmd/world/render.py",
        text="results/world/text/metrics.json",
    output:
        "results/world/clip/metrics.json",
    log:
        "logs/pretrain_clip.log",
    benchmark:
        "benchmarks/pretrain_clip.tsv"
    conda:
        "../envs/python.yaml"
    threads: WORLD["threads"]
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=WORLD["clip"],
        seed=WORLD["seed"],
    message:
        "world: the CLIP model that serves as reward and feature space"
    shell:
        "(rtdmd world clip) 2>&1 | tee {log} >&2"


rule pretrain_teacher:
    input:
        "data/world/params.yaml",
        "rtdmd/world/pretrain_teacher.py",
        "rtdmd/world/render.py",
        text="results/world/text/metrics.json",
        vae="results/world/vae/metrics.json",
    output:
        "results/world/teacher/metrics.json",
    log:
        "logs/pretrain_teacher.log",
    benchmark:
        "benchmarks/pretrain_teacher.tsv"
    conda:
        "../envs/python.yaml"
    threads: WORLD["threads"]
    resources:
        mem_mb=4000,
        runtime=120,
    params:
        settings=WORLD["teacher"],
        seed=WORLD["seed"],
    message:
        "world: the multi-step teacher (the long part: about an hour)"
    shell:
        "(rtdmd world teacher) 2>&1 | tee {log} >&2"


rule pretrain_assemble:
    input:
        expand("results/world/{part}/metrics.json", part=["text", "vae", "clip", "teacher"]),
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
