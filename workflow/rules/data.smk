# What the models are asked for, and how the teacher reads it.


rule prepare_prompts:
    input:
        JOBS["prepare_prompts"].inputs,
    output:
        outputs("prepare_prompts"),
    log:
        "logs/prepare_prompts.log",
    benchmark:
        "benchmarks/prepare_prompts.tsv"
    conda:
        "../envs/python.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        settings=JOBS["prepare_prompts"].params,
    message:
        "prepare_prompts: {}".format(JOBS["prepare_prompts"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item prepare_prompts) 2>&1 | tee {log} >&2"


rule cache_teacher:
    input:
        JOBS["cache_teacher"].inputs,
    output:
        outputs("cache_teacher"),
    log:
        "logs/cache_teacher.log",
    benchmark:
        "benchmarks/cache_teacher.tsv"
    conda:
        "../envs/python.yaml"
    threads: THREADS
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=JOBS["cache_teacher"].params,
    message:
        "cache_teacher: {}".format(JOBS["cache_teacher"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item cache_teacher) 2>&1 | tee {log} >&2"
