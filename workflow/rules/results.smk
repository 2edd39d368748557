# What is measured, shown and handed on.


rule evaluate:
    input:
        inputs("evaluate"),
    output:
        outputs("evaluate"),
    log:
        "logs/evaluate.log",
    benchmark:
        JOBS["evaluate"].benchmark
    conda:
        "../envs/python.yaml"
    threads: THREADS
    resources:
        **NEEDS.of("evaluate"),
    message:
        "evaluate: {}".format(JOBS["evaluate"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item evaluate) 2>&1 | tee {log} >&2"


rule report:
    input:
        inputs("report"),
    output:
        outputs("report"),
    log:
        "logs/report.log",
    benchmark:
        JOBS["report"].benchmark
    conda:
        "../envs/python.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=5,
    message:
        "report: {}".format(JOBS["report"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item report) 2>&1 | tee {log} >&2"


rule publish:
    input:
        inputs("publish"),
    output:
        outputs("publish"),
    log:
        "logs/publish.log",
    benchmark:
        JOBS["publish"].benchmark
    conda:
        "../envs/python.yaml"
    threads: THREADS
    resources:
        **NEEDS.of("publish"),
    message:
        "publish: {}".format(JOBS["publish"].description)
    shell:
        "(dvc --wait-for-lock repro --quiet --single-item publish) 2>&1 | tee {log} >&2"
