"""A plan as text."""

from __future__ import annotations

from collections.abc import Mapping

from rtdmd.common.columns import table
from rtdmd.config import Params
from rtdmd.plan.estimate import Plan, StagePlan, hours_of
from rtdmd.plan.fits import fit
from rtdmd.plan.gpus import GPUS, UTILISATION
from rtdmd.plan.memory import Memory

GIB = 2**30


def size(value: float) -> str:
    """Bytes in GiB or, below a tenth of one, in MiB."""
    return f"{value / GIB:.1f} GiB" if value >= GIB / 10 else f"{value / 2**20:.1f} MiB"


def number(value: float) -> str:
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def plan_text(plan: Plan, params: Params, gpu: str) -> str:
    stages = list(plan.stages.values())
    device = GPUS[gpu]
    dtype = params.model.dtype
    peak = getattr(device, dtype)
    about = (
        f"Time: FLOPs / ({number(peak)}FLOP/s x {UTILISATION:g} x GPUs); the {gpu}'s dense {dtype} peak is its"
        f" vendor's, a utilisation of {UTILISATION:g} is assumed."
    )
    student = params.model.student
    beside = "" if student is None else f", the student on {student.model},"
    parts = [
        f"{params.model.teacher}{beside} at {params.model.size_text} pixels, {dtype},"
        f" adapter.mode: {params.adapter.mode},"
        f" adapter.gradient_checkpointing: {str(params.adapter.gradient_checkpointing).lower()}",
        "Parameters\n" + _parameters(plan),
        f"Peak memory of a process\n{_memory({stage.name: stage.memory for stage in stages} | plan.publishing)}",
        "\n".join(_fits(stage, params, device.memory, gpu) for stage in stages),
        f"Computation\n{_computation(stages, gpu, dtype)}\n{about}",
    ]
    return "\n\n".join(parts)


def _parameters(plan: Plan) -> str:
    counts = {name: f"{count:,}".replace(",", " ") for name, (count, _) in plan.parameters.items()}
    rows = table(list(counts.items())).splitlines()
    return "\n".join(f"{row}  {what}" for row, (_, what) in zip(rows, plan.parameters.values(), strict=True))


def _memory(memories: Mapping[str, Memory]) -> str:
    held = [memory.held for memory in memories.values()]
    rows = [["", *memories]]
    staying = [name for memory in memories.values() for name in memory.parts]
    for name in dict.fromkeys([*staying, *(name for stage in held for name in stage)]):
        rows.append([name, *(size(stage[name]) if stage.get(name) else "-" for stage in held)])
    rows.append(["  largest in", *(memory.phase for memory in memories.values())])
    rows.append(["peak", *(size(memory.peak) for memory in memories.values())])
    return table(rows)


def _fits(stage: StagePlan, params: Params, memory: float, gpu: str) -> str:
    if stage.memory.peak <= memory:
        return f"{stage.name}: fits {gpu} ({size(memory)})"
    found = fit(stage.name, params, stage.measure, memory)
    settings = "; ".join(found.settings)
    if found.peak <= memory:
        return f"{stage.name}: does NOT fit {gpu} ({size(memory)}); it does, at {size(found.peak)}, with {settings}"
    least = f"; at least {size(found.peak)}" + (f" with {settings}" if settings else "")
    if stage.name in ("train_acdmd", "train_rtdmd"):
        least += f"; raise {stage.name}.processes and set {stage.name}.sharding: base"
    return f"{stage.name}: does NOT fit {gpu} ({size(memory)}){least}"


def _computation(stages: list[StagePlan], gpu: str, dtype: str) -> str:
    rows = [["", "updates", "FLOPs each", "FLOPs", "GPUs", f"time on {gpu}"]]
    for stage in stages:
        updates = f"{stage.updates} {stage.unit}"
        time = duration(stage.hours(gpu, dtype))
        rows.append([stage.name, updates, number(stage.flops), number(stage.total), str(stage.processes), time])
        if stage.watch is not None:
            evaluations = stage.watch.evaluations
            total = stage.watch.total
            time = duration(hours_of(total, gpu, dtype) / stage.processes)
            rows.append(["  watch", f"{evaluations} evaluations", number(total / evaluations), number(total), "", time])
        for suite in stage.suites if len(stage.suites) > 1 else ():
            time = duration(hours_of(suite.total, gpu, dtype))
            images = f"{suite.images} images at {suite.resolution} pixels"
            rows.append([f"  {suite.name}", images, number(suite.total / suite.images), number(suite.total), "", time])
    return table(rows)
