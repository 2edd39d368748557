# The way out: `snakemake upload` brings results/publish up to date and runs `rtdmd upload`, which sends it to the Hub when
# params.yaml says so (publish.dry_run: false). No other target asks for it, it has no output that a cache could answer
# with, and it runs where Snakemake runs: there are the network and the token.
localrules:
    upload,


rule upload:
    input:
        JOBS["publish"].outputs,
    log:
        "logs/upload.log",
    benchmark:
        "benchmarks/upload.tsv"
    conda:
        "../envs/python.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    message:
        "upload: send results/publish to the Hub"
    shell:
        "(rtdmd upload) 2>&1 | tee {log} >&2"
