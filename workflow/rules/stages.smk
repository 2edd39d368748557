# One rule a stage of dvc.yaml, all alike: a job is the DVC stage of the rule's name. What a stage reads, makes and is called stands in
# dvc.yaml, what it takes in the plan; here are only the two stages that compute nothing.
LIGHT = {"prepare_prompts": {"mem_mb": 1000, "runtime": 5}, "report": {"mem_mb": 2000, "runtime": 5}}

for stage, job in JOBS.items():

    rule:
        name:
            stage
        input:
            inputs(stage),
        output:
            outputs(stage),
        log:
            f"logs/{stage}.log",
        benchmark:
            job.benchmark
        conda:
            "../envs/python.yaml"
        threads: 1 if stage in LIGHT else THREADS * PARAMS.layout(stage)[1]  # of each node
        resources:
            **LIGHT[stage] if stage in LIGHT else RESOURCES.of(stage),
        params:
            stage=stage,
        message:
            f"{stage}: {job.description}"
        shell:
            "(dvc --wait-for-lock repro --quiet --single-item {params.stage}) 2>&1 | tee {log} >&2"
