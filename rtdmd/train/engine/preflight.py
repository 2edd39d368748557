"""What is tried before a long run, so that it does not end hours later for a reason that was there at its start.

Before the models are loaded: the trackers (`trackers`), a compiler where one is needed, processes of one kind, and a
sum over them. The teacher's, the rewards' and stage one's files say themselves what to do where one is missing or does
not fit. Then: deterministic settings, and room for checkpoints and outputs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

import torch

from rtdmd.common.errors import UserError
from rtdmd.config import RunParams
from rtdmd.pipeline.stage import Stage
from rtdmd.train.compile import require_compiler
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.learner import Learner

DETERMINISTIC_CUBLAS = (":4096:8", ":16:8")


def check_machine(stage: Stage, ranks: Ranks) -> None:
    """UserError, the same in every process, where the machines are not fit for the stage; it needs no model."""
    with ranks.sync_errors():
        if getattr(stage.params, stage.name).compile:
            require_compiler(f"{stage.name}.compile", ranks.device)
    require_same_hardware(ranks)
    require_all_reduce(ranks)


def preflight(stage: Stage, ranks: Ranks, learners: Sequence[Learner], keep: int) -> None:
    """UserError, the same in every process, where the run could not end well. ``keep``: checkpoints kept."""
    with ranks.sync_errors():
        require_deterministic(stage.params.run)
        if ranks.main:
            require_disk_space(stage, learners, keep)


def require_deterministic(run: RunParams) -> None:
    """Settings that something else in the process may have changed since `rtdmd.common.torch_setup.configure`."""
    if not torch.are_deterministic_algorithms_enabled() or torch.get_num_threads() != run.threads:
        raise UserError(
            f"torch has {torch.get_num_threads()} threads (run.threads: {run.threads}) and deterministic algorithms"
            f" {'on' if torch.are_deterministic_algorithms_enabled() else 'off'}: something changed them after the"
            " start; run the stage by its own command"
        )
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if run.device == "cuda" and workspace not in DETERMINISTIC_CUBLAS:
        raise UserError(
            f"CUBLAS_WORKSPACE_CONFIG is {workspace!r}, with which results do not repeat; unset it, or set"
            f" {DETERMINISTIC_CUBLAS[0]}"
        )


def checkpoint_bytes(learners: Sequence[Learner]) -> int:
    """Size of one checkpoint: parameters, AdamW's two moments of each, and averages."""
    total = 0
    for learner in learners:
        own = sum(parameter.numel() * parameter.element_size() for parameter in learner.parameters)
        total += own * (3 if learner.ema is None else 4)
    return total


def require_disk_space(stage: Stage, learners: Sequence[Learner], keep: int) -> None:
    """Room for the checkpoints that are kept and the one being written, and for the outputs beside the former ones."""
    there = sum(file.stat().st_size for file in stage.run_dir.rglob("*.safetensors"))  # of an earlier start
    checkpoints = max(0, (keep + 1) * checkpoint_bytes(learners) - there)
    outputs = sum(p.numel() * p.element_size() for learner in learners for p in learner.parameters)
    results = stage.root / "results"
    needs = {stage.run_dir: checkpoints, results: outputs}
    if stage.run_dir.stat().st_dev == results.stat().st_dev:
        needs = {stage.run_dir: checkpoints + outputs}
    for folder, need in needs.items():
        free = shutil.disk_usage(folder).free
        if free < need:
            raise UserError(
                f"{folder}: {free / 2**30:.2f} GiB free, but {stage.name} needs {need / 2**30:.2f} for {keep + 1}"
                f" checkpoints and its outputs; make room, or lower {stage.name}.keep"
            )


def require_same_hardware(ranks: Ranks) -> None:
    """Processes whose torch or device differs would not compute the same update from the same sums."""
    device = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    kinds = ranks.all_gather_object((torch.__version__, device))
    if len(set(kinds)) > 1:
        raise UserError(
            f"processes differ: {', '.join(f'torch {v} on {d}' for v, d in kinds)}; use machines of one kind"
        )


def require_all_reduce(ranks: Ranks) -> None:
    """The sum that every step needs, over the group and device that it will use."""
    number = torch.tensor([float(ranks.rank + 1)], device=ranks.device)
    ranks.all_reduce_tensors([number])
    expected = ranks.world * (ranks.world + 1) / 2
    if number.item() != expected:
        raise UserError(
            f"the sum over {ranks.world} processes is {number.item()} and not {expected}: their network is faulty"
            " (NCCL_DEBUG=INFO shows which)"
        )
