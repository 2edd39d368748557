"""The plan's FLOPs and bytes are those of the real stages: an update is run for real and counted as it runs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.backbones import load_backbone
from rtdmd.common.files import load_tensors
from rtdmd.common.rng import integers
from rtdmd.config import Params, preset
from rtdmd.config.presets import merged
from rtdmd.plan.cost_counter import count_cost
from rtdmd.plan.costs import Costs, flops_of
from rtdmd.plan.memory import acdmd_memory, rtdmd_memory
from rtdmd.plan.meta_models import MetaModels
from rtdmd.plan.passes import acdmd_rows, rtdmd_rows
from rtdmd.rehearse.memory import every_tensor
from rtdmd.rehearse.updates import Update, peak_epochs
from rtdmd.train.adapters import merge_stage_one, transformer_blocks
from rtdmd.train.rtdmd import open_adapters
from tools import bench

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
        "backprop_at": "last_step",
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
    "one base a role": {"adapter": {"mode": "full"}, "publish": {"format": "merged"}},
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
    "a surrogate reward and advantage-weighted matching": {
        "train_rtdmd": {"weights": {"surrogate": 0.1, "awm": 0.1}, "surrogate": {"prompts": 2}}
    },
    "from renoised images, without guidance": {"train_rtdmd": {"last_step_from": "renoised", "matching_guidance": 0.0}},
    "matching as a reward": {"train_rtdmd": {"matching_path": "reward", "density": "gaussian"}},
    "stage one merged, a new fake score": {
        "train_rtdmd": {"stage_one_adapters": "merged", "fake_adapter": "new", "weights": {"reference_kl": 0.1}}
    },
    "a new fake score on stage one's": {"train_rtdmd": {"fake_adapter": "new"}},
}
OWN: dict[str, Any] = {"train_acdmd": {"generator_rollout": "own"}}
FIRST = {name: VARIANTS[name] for name in list(VARIANTS)[:4]} | {
    "a rollout of the generator's own": OWN,
    "its own, one sample, to the last step": merged(
        OWN, {"train_acdmd": {"rollout_stop": "last", "consistency": {"weight": 0.01, "estimator": "one_sample"}}}
    ),
}


BIG: dict[str, Any] = {  # so that what passes outweighs the tiny models
    "train_acdmd": {"batch_size": 64, "micro_batch": 64},
    "train_rtdmd": {"prompts_per_epoch": 16, "micro_batch": 32, "last_step_batch_size": 64, "fake_batch_size": 64},
}
LARGE_ADAPTERS: dict[str, Any] = {
    "adapter": {"rank": 1024},
    "train_acdmd": {"micro_batch": 8},
    "train_rtdmd": {"micro_batch": 8},
}
FAKE_FIRST: dict[str, Any] = {  # whose update holds the most: few images in the last step, and no decoder's graph
    "adapter": {"rank": 256},
    "train_rtdmd": {"update_order": "fake_first", "last_step_batch_size": 16, "weights": {"backprop": 0.0}},
}
ITERATIONS: dict[str, dict[str, Any]] = {
    "whole": {"train_acdmd": {"consistency": {"weight": 0.0}}},
    "in micro-batches, with consistency": {"train_acdmd": {"micro_batch": 32}},
    "gradients outweigh activations": LARGE_ADAPTERS,
    "a rollout of the generator's own": merged(OWN, {"train_acdmd": {"consistency": {"weight": 0.0}}}),
    "its own, gradients outweigh activations": merged(OWN, LARGE_ADAPTERS),
}
EPOCHS: dict[str, dict[str, Any]] = {
    "matching at a random step": {"train_rtdmd": {"matching_path": "random_step"}},
    "one base a role": {"adapter": {"mode": "full"}, "publish": {"format": "merged"}},
    "blocks computed again": {"adapter": {"gradient_checkpointing": True}},
    "stage one merged, a new fake score": {"train_rtdmd": {"stage_one_adapters": "merged", "fake_adapter": "new"}},
    "back-propagation alone": {"train_rtdmd": {"weights": {"policy": 0.0, "backprop": 1.0, "matching": 0.0}}},
    "matching through all steps": {
        "train_rtdmd": {"weights": {"backprop": 0.0}, "matching_path": "whole_chain", "fake_updates_per_epoch": 0}
    },
    "a surrogate reward alone": {
        "train_rtdmd": {
            "weights": {"policy": 0.0, "backprop": 0.0, "matching": 0.0, "surrogate": 1.0},
            "fake_updates_per_epoch": 0,
        }
    },
    "the fake score before the terms": FAKE_FIRST,
    "gradients outweigh activations": LARGE_ADAPTERS,
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
    with count_cost() as counter:
        update(1)
    costs = Costs(MetaModels.of(params, Path("/")))
    assert counter.flops == pytest.approx(flops_of(rtdmd_rows(params), costs, "train_rtdmd"), rel=1e-9)


def test_rewards_that_come_in_turn_decode_the_last_step_twice(tiny_teacher: Path, tiny_clip: Path) -> None:
    rewards = [{"name": "clipscore", "model": str(tiny_clip), "weight": 1.0, "offload": True}]
    params = small(tiny_teacher, tiny_clip, {"train_rtdmd": {"rewards": rewards}})
    plain = rtdmd_rows(small(tiny_teacher, tiny_clip, {}))
    rows = rtdmd_rows(params)
    assert rows["decode forward"] - plain["decode forward"] == params.train_rtdmd.last_step_batch_size == 16
    update, _ = bench._second(params, Path("/"), CPU, PROMPTS)
    update(0)  # a reward embeds each prompt once
    with count_cost() as counter:
        update(1)
    assert counter.flops == pytest.approx(
        flops_of(rows, Costs(MetaModels.of(params, Path("/"))), "train_rtdmd"), rel=1e-9
    )


@pytest.mark.parametrize("name", FIRST)
def test_flops_of_an_iteration(tiny_teacher: Path, tiny_clip: Path, name: str) -> None:
    """Over two iterations, of which one stops after the first step, in both rollouts, and one after the second."""
    params = small(tiny_teacher, tiny_clip, FIRST[name])
    streams = ("train_acdmd", "train_acdmd-generator")
    stops = {tuple(integers(0, 2, 0, own, step, "stop") for own in streams): step for step in range(20)}
    update, _ = bench._first(params, Path("/"), CPU)
    with count_cost() as counter:
        for stop in (0, 1):
            update(stops[stop, stop])
    costs = Costs(MetaModels.of(params, Path("/")))
    assert counter.flops / 2 == pytest.approx(flops_of(acdmd_rows(params), costs, "train_acdmd"), rel=1e-9)


@pytest.fixture
def unnoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates whose passes are not noted: a note holds the pass's input."""
    monkeypatch.setattr(bench.Passes, "note", lambda self, out, *more: out)


def peak_of(update: Update, step: int) -> int:
    """Bytes that an update holds at its peak beside what was there before it."""
    gc.collect()
    with count_cost(every_tensor()) as counter:
        update(step)
    return int(counter.peak)


@pytest.mark.parametrize("name", ITERATIONS)
@pytest.mark.usefixtures("unnoted")
def test_bytes_of_an_iteration(tiny_teacher: Path, tiny_clip: Path, name: str) -> None:
    """To 5 %: left out are latents, noises and levels, and what torch needs to add gradients up."""
    params = small(tiny_teacher, tiny_clip, merged(BIG, ITERATIONS[name]))
    update, _ = bench._first(params, Path("/"), CPU)
    update(0)  # the optimizer's moments are there from now on
    memory = acdmd_memory(Costs(MetaModels.of(params, Path("/"))), params, 1)
    assert peak_of(update, 1) == pytest.approx(sum(memory.phases[memory.phase].values()), rel=0.05)


@pytest.mark.parametrize("name", EPOCHS)
@pytest.mark.usefixtures("unnoted")
def test_bytes_of_an_epoch(tiny_teacher: Path, tiny_clip: Path, name: str) -> None:
    """To 5 %, as an iteration's, of an epoch whose matching stops at the last step where that is drawn."""
    params = small(tiny_teacher, tiny_clip, merged(BIG, EPOCHS[name]))
    update, _ = bench._second(params, Path("/"), CPU, PROMPTS)
    update(0)  # a reward embeds each prompt once, and the optimizer's moments are there from now on
    memory = rtdmd_memory(Costs(MetaModels.of(params, Path("/"))), params, 1)
    epoch = peak_epochs(params, 2)[1]
    assert peak_of(update, epoch) == pytest.approx(sum(memory.phases[memory.phase].values()), rel=0.05)


def test_bytes_of_merged_layers(tiny_teacher: Path, tiny_clip: Path) -> None:
    """One copy of each adapted layer for the generator, one for a new fake score; the copies that a run holds."""
    new = {"train_rtdmd": {"stage_one_adapters": "merged", "fake_adapter": "new"}}
    params = small(tiny_teacher, tiny_clip, new)
    backbone = load_backbone(params.model, root=Path("/"))
    bank = open_adapters(params, backbone)
    merge_stage_one(bank, params)
    held = sum(
        tensor.nbytes
        for name in ("acdmd", "fake")
        for key, tensor in backbone.transformer.named_parameters()
        if f".merged_{name}." in key
    )
    for changes, copies in (({}, 0), ({"stage_one_adapters": "merged"}, 1), (new["train_rtdmd"], 2)):
        own = small(tiny_teacher, tiny_clip, {"train_rtdmd": changes})
        parts = rtdmd_memory(Costs(MetaModels.of(own, Path("/"))), own, 1).parts
        assert held > 0 and parts.get("merged layers", 0) == copies * held / 2
    plain, fresh = (MetaModels.of(small(tiny_teacher, tiny_clip, own), Path("/")) for own in ({}, new))
    fewer, more = (rtdmd_memory(Costs(models), models.params, 1).parts["adapters"] for models in (plain, fresh))
    assert more - fewer == plain.adapter_bytes("fake")

    # Sharded, a block is gathered with its copies: three blocks at once.
    blocks = [
        sum(tensor.nbytes for key, tensor in block.named_parameters() if ".lora_" not in key)
        for block in transformer_blocks(backbone.transformer)
    ]
    spread = {"train_rtdmd": new["train_rtdmd"] | {"processes": 2, "sharding": "base"}}
    sharded = small(tiny_teacher, tiny_clip, spread)
    parts = rtdmd_memory(Costs(MetaModels.of(sharded, Path("/"))), sharded, 2).parts
    assert parts["gathered blocks"] == 3 * max(blocks)
    assert parts["merged layers"] == held / 2


def test_bytes_of_a_sharded_base(tiny_teacher: Path, tiny_clip: Path) -> None:
    """Of the blocks' weights in the teacher's file each of two processes keeps half, in both stages; so does each of
    four in groups of two."""
    base = {"processes": 2, "sharding": "base"}
    hybrid = base | {"sharding": "hybrid", "shard_group": 2}
    whole, shared, grouped = (
        Costs(MetaModels.of(small(tiny_teacher, tiny_clip, {"train_acdmd": keys, "train_rtdmd": keys}), Path("/")))
        for keys in ({}, base, hybrid)
    )
    tensors, _ = load_tensors(tiny_teacher / "transformer/diffusion_pytorch_model.safetensors")
    blocks = [tensor.nbytes for name, tensor in tensors.items() if name.startswith("transformer_blocks.")]
    for memory in (acdmd_memory, rtdmd_memory):
        alone, parts, groups = (
            memory(costs, costs.models.params, count).parts for costs, count in ((whole, 2), (shared, 2), (grouped, 4))
        )
        assert alone["transformer"] - parts["transformer"] == sum(blocks) / 2
        assert "gathered blocks" not in alone and parts["gathered blocks"] > 0
        assert groups["transformer"] == parts["transformer"]
        assert groups["gathered blocks"] == parts["gathered blocks"]


def test_evaluation_counts_no_backward_pass(tiny_teacher: Path, tiny_clip: Path) -> None:
    """Its passes at a suite's own resolution cost what those of training do forward, and nothing else is counted."""
    models = MetaModels.of(small(tiny_teacher, tiny_clip, {}), Path("/"))
    training, judging = Costs(models), Costs(models, learning=False)
    for pass_name in ("generator", "decode"):
        learned, judged = getattr(training, pass_name), getattr(judging, pass_name)
        assert judged.flops == learned.flops > 0
        assert judged.backward_flops == judged.backward_peak == 0 < learned.backward_flops


def test_the_models_at_another_size_cost_what_models_made_for_it_do(tiny_teacher: Path, tiny_clip: Path) -> None:
    params = small(tiny_teacher, tiny_clip, {})
    size = 24  # of 36: as many patches as the tiny teacher's table of positions has, or fewer
    smaller = params.model_copy(update={"model": params.model.model_copy(update={"resolution": size})})
    once = Costs(MetaModels.of(params, Path("/")).at(size))
    made = Costs(MetaModels.of(smaller, Path("/")))
    assert once.models.latent_bytes() == made.models.latent_bytes()
    assert 9 * once.models.latent_bytes() == 4 * MetaModels.of(params, Path("/")).latent_bytes()
    assert (once.teacher, once.generator, once.pictures) == (made.teacher, made.generator, made.pictures)
    rewards = params.evaluate.rewards
    assert once.scores(rewards, gradient=False).flops == made.scores(rewards, gradient=False).flops
