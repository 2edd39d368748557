# The two training stages.


rule train_acdmd:
    input:
        inputs("train_acdmd"),
    output:
        outputs("train_acdmd"),
    log:
        "logs/train_acdmd.log",
    benchmark:
        JOBS["train_acdmd"].benchmark
    conda:
        "../envs/python.yaml"
    threads: THREADS * PARAMS.train_acdmd.processes
    resources:
        **NEEDS.of("train_acdmd"),
    message:
        "train_acdmd: {}".format(JOBS["train_acdmd"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item train_acdmd) 2>&1 | tee {log} >&2"


rule train_rtdmd:
    input:
        inputs("train_rtdmd"),
    output:
        outputs("train_rtdmd"),
    log:
        "logs/train_rtdmd.log",
    benchmark:
        JOBS["train_rtdmd"].benchmark
    conda:
        "../envs/python.yaml"
    threads: THREADS * PARAMS.train_rtdmd.processes
    resources:
        **NEEDS.of("train_rtdmd"),
    message:
        "train_rtdmd: {}".format(JOBS["train_rtdmd"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item train_rtdmd) 2>&1 | tee {log} >&2"
