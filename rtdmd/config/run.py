"""Section `run`: what holds for every stage."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import Section, Whole, param


class RunParams(Section):
    """Seed and machine."""

    seed: Whole = param("root of every random draw", source="ours", ge=0, lt=2**63)
    threads: Whole = param(
        "torch threads of a stage; another count gives other last digits", unit="threads", source="ours", ge=1
    )
    device: Literal["cpu", "cuda"] = param("where a stage computes", source="torch")
    gpus_per_node: Whole | None = param(
        "processes of a training on one node; more take several nodes of a Slurm job; null: one node; changes no byte",
        unit="processes",
        source="ours",
        ge=1,
    )
