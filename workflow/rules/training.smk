# The two training stages.


rule train_acdmd:
    input:
        JOBS["train_acdmd"].inputs,
    output:
        outputs("train_acdmd"),
    log:
        "logs/train_acdmd.log",
    benchmark:
        "benchmarks/train_acdmd.tsv"
    conda:
        "../envs/python.yaml"
    threads: THREADS
    resources:
        mem_mb=6000,
        runtime=120,
    params:
        settings=JOBS["train_acdmd"].params,
    message:
        "train_acdmd: {}".format(JOBS["train_acdmd"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item train_acdmd) 2>&1 | tee {log} >&2"


rule train_rtdmd:
    input:
        JOBS["train_rtdmd"].inputs,
    output:
        outputs("train_rtdmd"),
    log:
        "logs/train_rtdmd.log",
    benchmark:
        "benchmarks/train_rtdmd.tsv"
    conda:
        "../envs/python.yaml"
    threads: THREADS
    resources:
        mem_mb=6000,
        runtime=120,
    params:
        settings=JOBS["train_rtdmd"].params,
    message:
        "train_rtdmd: {}".format(JOBS["train_rtdmd"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item train_rtdmd) 2>&1 | tee {log} >&2"
