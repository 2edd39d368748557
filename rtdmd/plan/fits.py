"""Which settings bring a stage into a GPU's memory: those that cost the least are tried first, by the plan itself.

None of them changes a student beyond rounding, and none is proposed that is set already or that saves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rtdmd.config import Params
from rtdmd.config.load import validate
from rtdmd.config.presets import merged
from rtdmd.plan.memory import Memory

Measure = Callable[[Params], Memory]
"""The memory of one process of a stage under other settings."""
Candidate = tuple[str, str, dict[str, Any]]
"""A key, its value as a line says it, and the change of the tree."""
SIZES = {
    "cache_teacher": "batch_size",
    "train_acdmd": "micro_batch",
    "train_rtdmd": "micro_batch",
    "evaluate": "batch_size",
}
"""The key of each stage that says how many rows a pass has."""


@dataclass(frozen=True)
class Fit:
    """What to set, a line for each setting, and the peak with all of them."""

    settings: tuple[str, ...]
    peak: float


def fit(stage: str, params: Params, measure: Measure, memory: float) -> Fit:
    """The settings of a stage that bring its peak to ``memory`` bytes, or as near as they can. What turned out not to
    be needed, once a later one had helped, is left out again."""
    chosen: list[Candidate] = []
    peak = measure(params).peak
    for candidate in _candidates(stage, params):
        if peak <= memory:
            break
        less = measure(_changed(params, [*chosen, candidate])).peak
        if less < peak:
            chosen.append(candidate)
            peak = less
    for candidate in reversed(chosen[:-1] if peak <= memory else ()):  # without the last one it did not fit
        fewer = [one for one in chosen if one is not candidate]
        without = measure(_changed(params, fewer)).peak
        if without <= memory:
            chosen = fewer
            peak = without
    lines = {key: value for key, value, _ in chosen}
    return Fit(tuple(f"{key}: {value}" for key, value in lines.items()), peak)


def _changed(params: Params, candidates: Sequence[Candidate]) -> Params:
    tree = params.model_dump(mode="json")
    for _, _, change in candidates:
        tree = merged(tree, change)
    return validate(tree)


def _candidates(stage: str, params: Params) -> Iterator[Candidate]:
    """In the order in which they are tried."""
    section = getattr(params, stage)
    if stage in ("train_rtdmd", "evaluate"):
        names = [one.name for one in section.rewards if one.sources and one.socket is None and not one.offload]
        if names:
            rewards = [one.model_dump(mode="json") for one in section.rewards]
            moved = [one | ({"offload": True} if one["name"] in names else {}) for one in rewards]
            yield f"offload of {stage}.rewards {', '.join(names)}", "true", {stage: {"rewards": moved}}
    learns = stage in ("train_acdmd", "train_rtdmd")
    if learns and not params.adapter.gradient_checkpointing:
        yield "adapter.gradient_checkpointing", "true", {"adapter": {"gradient_checkpointing": True}}
    size = getattr(section, SIZES[stage]) // 2
    while size:
        yield f"{stage}.{SIZES[stage]}", str(size), {stage: {SIZES[stage]: size}}
        size //= 2
    if learns and section.watch.every:
        yield f"{stage}.watch.every", "0", {stage: {"watch": {"every": 0}}}
    if stage != "cache_teacher" and params.cache_teacher.mode == "on_the_fly":
        yield "cache_teacher.mode", "cache", {"cache_teacher": {"mode": "cache"}}
