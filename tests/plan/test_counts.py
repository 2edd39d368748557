"""The plan's FLOPs and bytes are those of the real stages: an update is run for real and counted as it runs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd import bench
from rtdmd.config import Params, preset
from rtdmd.config.presets import merged
from rtdmd.plan.costs import Costs, flops_of
from rtdmd.plan.memory import acdmd_memory, rtdmd_memory
from rtdmd.plan.passes import acdmd_rows, rtdmd_rows
from rtdmd.plan.stand import Stand
from rtdmd.plan.tally import tally
from rtdmd.rng import integers

CPU = torch.device("cpu")
PROMPTS = [{"prompt": text, "metadata": None} for text in ("a red circle", "a blue square", "two green crosses")]
SMALL: dict[str, Any] = {
    "run": {"threads": 1},
    "model": {"num_steps": 2},
    "train_acdmd": {"generator_every": 1, "iterations": 8, "batch_size": 16, "micro_batch": 16},
    "train_rtdmd": {
        "candidate_steps": [0],
        "trained_steps": 1,
        "matching_path": "last_step",
        "drop_zero_advantage": False,
        "prompts_per_epoch": 3,
        "group_size": 8,
        "micro_batch": 8,
        "fake_batch_size": 24,
        "last_step_batch_size": 16,
        "clip_range": 10.0,
    },
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as the smoke run": {},
    "one base a role": {"adapter": {"mode": "full"}},
    "noise of its own, one sample": {
        "train_acdmd": {"consistency": {"weight": 0.01, "estimator": "one_sample"}},
        "train_rtdmd": {"share_initial": False, "consistency": {"weight": 0.0}},
    },
    "blocks computed again": {"adapter": {"gradient_checkpointing": True}},
    "matching alone": {"train_rtdmd": {"weights": {"policy": 0.0, "backprop": 0.0, "matching": 1.0}}},
    "anchored, nothing propagated": {"train_rtdmd": {"weights": {"backprop": 0.0, "reference_kl": 0.1}}},
    "a gain, credit and a loss of the compared methods": {
        "train_rtdmd": {"matching_gain": 0.5, "credit": "to_go", "weights": {"nft": 0.1}}
    },
    "matching as a reward": {"train_rtdmd": {"matching_path": "reward", "density": "gaussian"}},
}


def small(teacher: Path, clip: Path, changes: dict[str, Any]) -> Params:
    """The smoke preset on the tiny models, every drawn choice fixed."""
    rewards = [{"name": "clipscore", "model": str(clip), "weight": 1.0}]
    own = {"model": {"teacher": str(teacher)}, "train_rtdmd": {"rewards": rewards}}
    own["evaluate"] = {"rewards": rewards, "features_model": None}
    return preset("smoke", merged(merged(SMALL, own), changes))


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_of_an_epoch(tiny_teacher: Path, tiny_clip: Path, name: str) -> None:
    params = small(tiny_teacher, tiny_clip, VARIANTS[name])
    update, _ = bench._second(params, Path("/"), CPU, PROMPTS)
    update(0)  # a reward embeds each prompt once
    with tally() as meter:
        update(1)
    costs = Costs(Stand.of(params, Path("/")))
    assert meter.flops == pytest.approx(flops_of(rtdmd_rows(params), costs, "train_rtdmd"), rel=1e-9)


@pytest.mark.parametrize("name", list(VARIANTS)[:4])
def test_flops_of_an_iteration(tiny_teacher: Path, tiny_clip: Path, name: str) -> None:
    """Over two iterations, of which one stops after the first step and one after the second."""
    params = small(tiny_teacher, tiny_clip, VARIANTS[name])
    stops = {integers(0, 2, 0, "train_acdmd", step, "stop"): step for step in range(20)}
    update, _ = bench._first(params, Path("/"), CPU)
    with tally() as meter:
        for stop in (0, 1):
            update(stops[stop])
    costs = Costs(Stand.of(params, Path("/")))
    assert meter.flops / 2 == pytest.approx(flops_of(acdmd_rows(params), costs, "train_acdmd"), rel=1e-9)


@pytest.mark.parametrize("stage", ["train_acdmd", "train_rtdmd"])
def test_bytes_of_an_update(tiny_teacher: Path, tiny_clip: Path, stage: str) -> None:
    """What an update holds at its peak beside what was there before it, within the 20 % that the plan promises."""
    big = {
        "train_acdmd": {"batch_size": 64, "micro_batch": 64},
        "train_rtdmd": {"prompts_per_epoch": 16, "micro_batch": 64},
    }
    params = small(tiny_teacher, tiny_clip, merged({"adapter": {"rank": 2}}, big))
    make, plan = {"train_acdmd": (bench._first, acdmd_memory), "train_rtdmd": (bench._second, rtdmd_memory)}[stage]
    update, _ = make(params, Path("/"), CPU, *([PROMPTS] if stage == "train_rtdmd" else []))
    update(0)
    gc.collect()
    with tally([found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]) as meter:
        update(1)
    memory = plan(Costs(Stand.of(params, Path("/"))), 1)
    own = memory.parts["gradients"] + memory.parts.get("roll-out", 0) + memory.phases[memory.phase]
    assert meter.peak == pytest.approx(own, rel=0.2)
