"""What the runs of a table cost by `rtdmd plan`: GPU hours by stage, each shared stage once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rtdmd.experiments import TABLES
from rtdmd.experiments.jobs import Jobs, stages_of
from rtdmd.plan.estimate import make_plan

GPU = "H200"
COMPUTED = ("cache_teacher", "train_acdmd", "train_rtdmd", "evaluate")


def cost_text(names: Sequence[str], jobs: Jobs) -> Iterator[str]:
    """Markdown: a line per run with GPU hours by stage, or the run above with which it shares the stage."""
    yield f"| run | {' | '.join(COMPUTED)} | GPU hours ({GPU}) |"
    yield f"|---|{'---|' * len(COMPUTED)}---|"
    first: dict[tuple[str, str], str] = {}
    total = 0.0
    for run in dict.fromkeys(run for name in names for run in TABLES[name].runs()):
        fields = []
        own = 0.0
        hours = gpu_hours(run, jobs)
        for stage in COMPUTED:
            owner = first.setdefault((stage, jobs.keys[run, stage]), run) if stage in hours else None
            fields.append("–" if owner is None else f"{hours[stage]:.1f}" if owner == run else f"of {owner}")
            own += hours[stage] if owner == run else 0.0
        total += own
        yield f"| {run} | {' | '.join(fields)} | {own:.1f} |"
    yield f"| all |{' |' * len(COMPUTED)} {total:.1f} |"


def gpu_hours(run: str, jobs: Jobs) -> dict[str, float]:
    """Hours of one GPU by stage, of the stages that the run has."""
    params = jobs.params[run]
    plan = make_plan(params, jobs.root)
    stages = [plan.stages[stage] for stage in stages_of(params) if stage in COMPUTED]
    return {stage.name: stage.processes * stage.hours(GPU, params.model.dtype) for stage in stages}
