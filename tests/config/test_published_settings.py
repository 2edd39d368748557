"""Each real preset against the published experiments, row by row: what the public code's own settings files say.

The tables are written out here from those files (five for stage one, five for stage two, five for inference), so that
a preset that drifts from them names its row. Order of the columns: SD3-M, SD3.5-M, FLUX.1 [dev], FLUX.2 [klein] 4B, 9B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rtdmd.config import Params, preset

NAMES = ("sd3m", "sd35m", "flux1-dev", "flux2-klein-4b", "flux2-klein-9b")
Row = tuple[str, Callable[[Params], Any], tuple[Any, ...]]


def same(value: Any) -> tuple[Any, ...]:
    """A row whose value is equal in all five."""
    return (value,) * len(NAMES)


MODEL: list[Row] = [
    (
        "teacher and fake score stand on",
        lambda p: p.model.teacher,
        (
            "stabilityai/stable-diffusion-3-medium-diffusers",
            "stabilityai/stable-diffusion-3.5-medium",
            "black-forest-labs/FLUX.1-dev",
            "black-forest-labs/FLUX.2-klein-base-4B",
            "black-forest-labs/FLUX.2-klein-base-9B",
        ),
    ),
    (
        "generator stands on",
        lambda p: p.model.student and p.model.student.model,
        (None, None, None, "black-forest-labs/FLUX.2-klein-4B", "black-forest-labs/FLUX.2-klein-9B"),
    ),
    ("resolution of training", lambda p: p.model.resolution, (1024, 512, 512, 512, 512)),
    ("seed", lambda p: p.run.seed, same(42)),
    ("dtype", lambda p: p.model.dtype, same("bfloat16")),
    ("teacher's guidance", lambda p: p.model.guidance, (7.0, 4.5, 3.5, 4.0, 4.0)),
    ("steps of the sampler", lambda p: p.model.num_steps, same(4)),
    ("stochasticity of CPS", lambda p: p.model.eta, same(0.9)),
    ("LoRA rank and alpha", lambda p: (p.adapter.rank, p.adapter.alpha), same((32, 64))),
    ("LoRA targets", lambda p: p.adapter.targets, same("attention")),
    ("gradient checkpointing", lambda p: p.adapter.gradient_checkpointing, same(True)),
]


def optimizer(role: str, stage: str, key: str) -> Callable[[Params], Any]:
    """One key of a role's optimizer in a stage."""
    return lambda p: getattr(getattr(getattr(p, stage), f"{role}_optimizer"), key)


def adamw(stage: str, role: str, rates: tuple[float, ...], decay: float) -> list[Row]:
    """The rows of one role's AdamW."""
    return [
        (f"{stage}: {role}'s rate", optimizer(role, stage, "lr"), rates),
        (f"{stage}: {role}'s betas", optimizer(role, stage, "betas"), same((0.9, 0.999))),
        (f"{stage}: {role}'s eps", optimizer(role, stage, "eps"), same(1e-8)),
        (f"{stage}: {role}'s decay", optimizer(role, stage, "weight_decay"), same(decay)),
        (f"{stage}: {role}'s norm", optimizer(role, stage, "max_grad_norm"), same(1.0)),
    ]


STAGE_ONE_RATES = (3e-5, 3e-5, 3e-5, 1e-6, 1e-6)
STAGE_ONE: list[Row] = [
    ("prompts", lambda p: [s.name for s in p.prepare_prompts.sets[p.train_acdmd.prompts]], same(["pickscore"])),
    ("prompts: order", lambda p: p.train_acdmd.prompt_order, same("as_listed")),
    ("A of a new LoRA", lambda p: p.train_acdmd.adapter_init, same("gaussian")),
    ("stop of the rollout", lambda p: p.train_acdmd.rollout_stop, same("random")),
    ("renoising starts at", lambda p: p.train_acdmd.renoise_from, same("step")),
    ("renoising time", lambda p: p.train_acdmd.renoise_time, same("clamped")),
    ("fake score's weight", lambda p: p.train_acdmd.weighting, same("clamp")),
    ("consistency", lambda p: p.train_acdmd.consistency.weight, same(0.01)),
    ("consistency: estimator", lambda p: p.train_acdmd.consistency.estimator, same("two_sample")),
    ("consistency: kernel", lambda p: p.train_acdmd.consistency.kernel, same("published")),
    ("iterations a generator update", lambda p: p.train_acdmd.generator_every, same(10)),
    ("generator's rollout", lambda p: p.train_acdmd.generator_rollout, same("own")),
    ("warm-up", lambda p: p.train_acdmd.warmup, same(0)),
    ("batch: 9 on each of 8 GPUs", lambda p: (p.train_acdmd.micro_batch, p.train_acdmd.batch_size), same((9, 72))),
    ("EMA", lambda p: (p.train_acdmd.ema_decay, p.train_acdmd.ema_per), same((0.99, "iteration"))),
    ("iterations", lambda p: p.train_acdmd.iterations, same(15000)),
    *adamw("train_acdmd", "generator", STAGE_ONE_RATES, 0.0),
    *adamw("train_acdmd", "fake", STAGE_ONE_RATES, 0.0),
]

IMAGES = (2 * 16 * 16, 9 * 16 * 8, 3 * 16 * 32, 6 * 16 * 16, 3 * 16 * 32)  # per GPU and batch, batches, GPUs
GROUPS = (16, 24, 24, 24, 24)
STAGE_TWO: list[Row] = [
    ("recipe", lambda p: p.train_rtdmd.recipe, same("published")),
    ("stage one's adapters", lambda p: p.train_rtdmd.stage_one_adapters, same("merged")),
    ("fake score's adapter", lambda p: p.train_rtdmd.fake_adapter, same("new")),
    ("A of a new LoRA", lambda p: p.train_rtdmd.adapter_init, same("standard_normal")),
    ("prompts", lambda p: [s.name for s in p.prepare_prompts.sets[p.train_rtdmd.prompts]], same(["geneval"])),
    (
        "rewards, weight 1 each",
        lambda p: {reward.name: reward.weight for reward in p.train_rtdmd.rewards},
        same({"clipscore": 1.0, "hpsv2": 1.0, "pickscore": 1.0, "geneval": 1.0}),
    ),
    (
        "clipscore is resized",
        lambda p: [reward.resize for reward in p.train_rtdmd.rewards if reward.name == "clipscore"],
        same(["bilinear"]),
    ),
    (
        "images reach the towers as bytes in the policy term",
        lambda p: {reward.pixels for reward in p.train_rtdmd.rewards if reward.name != "geneval"},
        same({"bytes"}),
    ),
    ("advantages: baseline", lambda p: p.train_rtdmd.baseline, same("group_mean")),
    ("advantages: deviation", lambda p: p.train_rtdmd.advantage_std, same("batch")),
    ("advantages: clip", lambda p: p.train_rtdmd.advantage_clip, same(5.0)),
    ("group", lambda p: p.train_rtdmd.group_size, GROUPS),
    ("images an epoch", lambda p: p.train_rtdmd.prompts_per_epoch * p.train_rtdmd.group_size, IMAGES),
    ("images a GPU and batch", lambda p: p.train_rtdmd.micro_batch, (2, 9, 3, 6, 3)),
    ("initial noise shared", lambda p: p.train_rtdmd.share_initial, same(False)),
    (
        "steps trained",
        lambda p: (p.train_rtdmd.trained_steps, list(p.train_rtdmd.candidate_steps)),
        same((2, [0, 1, 2])),
    ),
    ("clip", lambda p: p.train_rtdmd.clip_range, same(1e-5)),
    ("reference KL", lambda p: p.train_rtdmd.weights.reference_kl, same(0.0)),
    ("EMA", lambda p: (p.train_rtdmd.ema_decay, p.train_rtdmd.ema_every), same((0.9, 8))),
    ("EMA: warm-up", lambda p: p.train_rtdmd.ema_warmup, same(True)),
    ("EMA: in the loop over 16 batches", lambda p: p.train_rtdmd.ema_repeats, same(16)),
    ("loss: divided by", lambda p: p.train_rtdmd.loss_average, same("all_steps")),
    ("loss: policy", lambda p: p.train_rtdmd.weights.policy, same(1.0)),
    ("last step: matching", lambda p: p.train_rtdmd.weights.matching, same(1e-3)),
    ("last step: back-propagation", lambda p: p.train_rtdmd.weights.backprop, same(1e-4)),
    ("last step: margin", lambda p: p.train_rtdmd.backprop_margin, same(3.0)),
    ("order in an epoch", lambda p: p.train_rtdmd.update_order, same("fake_first")),
    ("fake score's images", lambda p: p.train_rtdmd.fake_samples, same("data")),
    ("renoising time", lambda p: p.train_rtdmd.renoise_time, same("clamped")),
    ("consistency", lambda p: p.train_rtdmd.consistency.weight, (0.01, 0.01, 0.0, 0.01, 0.0)),
    ("epochs", lambda p: p.train_rtdmd.epochs, same(1000)),
    ("saved every", lambda p: p.train_rtdmd.save_every, (100, 100, 50, 100, 50)),
    *adamw("train_rtdmd", "generator", same(3e-6), 1e-4),
    *adamw("train_rtdmd", "fake", (3e-5, 3e-5, 1e-6, 1e-6, 1e-6), 0.0),
]


def suites(params: Params, section: str) -> dict[str, set[str]]:
    """Scorers by the source of the suite's prompts."""
    sets = params.prepare_prompts.sets
    judging = params.judging[section]
    return {
        sets[suite.prompts][0].name: {reward.name for reward in suite.scorers(judging.rewards)}
        for suite in judging.suites
    }


NINE = {
    "drawbench": {"clipscore", "pickscore", "hpsv2", "aesthetic", "imagereward"},
    "hpsv3": {"hpsv3"},
    "geneval": {"geneval"},
    "geneval2": {"geneval2"},
    "ocr": {"ocr"},
}
SEVEN = {name: scorers for name, scorers in NINE.items() if name not in ("geneval", "geneval2")}
WATCH: list[Row] = [
    ("stage one: watched every", lambda p: p.train_acdmd.watch.every, same(1000)),
    ("stage one: prompts of a set", lambda p: p.train_acdmd.watch.max_prompts, (8, 64, 64, 64, 64)),
    ("stage one: scorers", lambda p: suites(p, "train_acdmd.watch"), (NINE, NINE, SEVEN, SEVEN, SEVEN)),
    ("stage two: watched every", lambda p: p.train_rtdmd.watch.every, same(50)),
    ("stage two: prompts of a set", lambda p: p.train_rtdmd.watch.max_prompts, same(64)),
    ("stage two: scorers", lambda p: suites(p, "train_rtdmd.watch"), same(NINE)),
    (
        "watched at the resolution of the training",
        lambda p: {one.resolution for stage in (p.train_acdmd, p.train_rtdmd) for one in stage.watch.suites},
        same({None}),
    ),
]

EVALUATION: list[Row] = [
    ("nine scorers, each on its own prompts", lambda p: suites(p, "evaluate"), same(NINE)),
    ("resolution", lambda p: {suite.resolution or p.model.resolution for suite in p.evaluate.suites}, same({1024})),
    (
        "images a prompt",
        lambda p: {suite.prompts: suite.images_per_prompt for suite in p.evaluate.suites},
        same({"drawbench": 5, "hpsv3": 1, "geneval": 4, "geneval2": 1, "ocr": 1}),
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_the_published_experiment_row_by_row(name: str) -> None:
    params = preset(name)
    column = NAMES.index(name)
    rows = [*MODEL, *STAGE_ONE, *STAGE_TWO, *WATCH, *EVALUATION]
    odd = {what: (read(params), values[column]) for what, read, values in rows if read(params) != values[column]}
    assert not odd
