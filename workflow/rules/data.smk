# What the models are asked for, and how the teacher reads it.


rule prepare_prompts:
    input:
        inputs("prepare_prompts"),
    output:
        outputs("prepare_prompts"),
    log:
        "logs/prepare_prompts.log",
    benchmark:
        JOBS["prepare_prompts"].benchmark
    conda:
        "../envs/python.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=5,
    message:
        "prepare_prompts: {}".format(JOBS["prepare_prompts"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item prepare_prompts) 2>&1 | tee {log} >&2"


rule cache_teacher:
    input:
        inputs("cache_teacher"),
    output:
        outputs("cache_teacher"),
    log:
        "logs/cache_teacher.log",
    benchmark:
        JOBS["cache_teacher"].benchmark
    conda:
        "../envs/python.yaml"
    threads: THREADS
    resources:
        **NEEDS.of("cache_teacher"),
    message:
        "cache_teacher: {}".format(JOBS["cache_teacher"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item cache_teacher) 2>&1 | tee {log} >&2"
