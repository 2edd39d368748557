# What is measured, shown and handed on.


rule evaluate:
    input:
        JOBS["evaluate"].inputs,
    output:
        outputs("evaluate"),
    log:
        "logs/evaluate.log",
    benchmark:
        "benchmarks/evaluate.tsv"
    conda:
        "../envs/python.yaml"
    threads: THREADS
    resources:
        mem_mb=6000,
        runtime=60,
    params:
        settings=JOBS["evaluate"].params,
    message:
        "evaluate: {}".format(JOBS["evaluate"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item evaluate) 2>&1 | tee {log} >&2"


rule report:
    input:
        JOBS["report"].inputs,
    output:
        outputs("report"),
    log:
        "logs/report.log",
    benchmark:
        "benchmarks/report.tsv"
    conda:
        "../envs/python.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=5,
    params:
        settings=JOBS["report"].params,
    message:
        "report: {}".format(JOBS["report"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item report) 2>&1 | tee {log} >&2"


rule publish:
    input:
        JOBS["publish"].inputs,
    output:
        outputs("publish"),
    log:
        "logs/publish.log",
    benchmark:
        "benchmarks/publish.tsv"
    conda:
        "../envs/python.yaml"
    threads: THREADS
    resources:
        mem_mb=6000,
        runtime=15,
    params:
        settings=JOBS["publish"].params,
    message:
        "publish: {}".format(JOBS["publish"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item publish) 2>&1 | tee {log} >&2"
