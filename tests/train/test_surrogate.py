"""TDM-R1's surrogate reward on the tiny backbone: what it learns from and what it gives, each by its definition."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdmd.common.rng import integers
from rtdmd.flow.ambient import ambient_target, draw_renoise_time, renoise
from rtdmd.flow.matching import dmd_loss
from rtdmd.rewards.reward_models import RewardModels
from rtdmd.train.adapters import ADAPTERS, AdapterBank
from rtdmd.train.learner import Terms
from rtdmd.train.losses import Renoised, matching_direction
from rtdmd.train.rtdmd import RtdmdTrainer
from rtdmd.train.surrogate import SurrogateReward
from tests.train.test_rtdmd import (
    COUNT,
    ETA,
    GROUP_OF,
    LEVELS,
    RECORDS,
    SIZE,
    all_settings,
    draws,
    flat,
    relative,
    some_advantages,
)
from tests.train.workshop import adapter, conditioning, disturb, tiny_backbone

ON: dict[str, Any] = {
    "weights": {"policy": 0.0, "backprop": 0.0, "matching": 0.0, "surrogate": 1.0},
    "surrogate": {"prompts": 2, "preference": 3.0, "anchor": 0.5, "bound": 1e9, "guidance": 0.5},
}


class Surrogate:
    """A trainer with a surrogate away from the teacher, a rollout, and what an update's gradient was."""

    def __init__(self, teacher: Path, disturbed: bool = True) -> None:
        backbone = tiny_backbone(teacher, vae=True)
        stacks = ADAPTERS["train_rtdmd"] | {"surrogate": ("surrogate",)}
        bank = AdapterBank(copy.deepcopy(backbone), adapter(), stacks, 0)
        disturb(bank, "acdmd", "rtdmd", "fake", *["surrogate"] * disturbed)
        reward_models = RewardModels({}, torch.device("cpu"))
        self.cond = conditioning(COUNT // SIZE).repeat_interleave(SIZE)
        self.trainer = RtdmdTrainer(all_settings(**ON), backbone, reward_models, conditioning(1, "null"), adapters=bank)
        records = [{"prompt": record["prompt"], "metadata": record} for record in RECORDS]
        self.rollout = self.trainer.roll_out(self.cond, records, GROUP_OF, (0, 2), draws())

    def velocity(self, role: str, x: Tensor, t: Tensor, rows: list[int], **guided: Any) -> Tensor:
        return self.trainer.adapters.velocity(role, x, t, self.cond.index(rows), **guided)

    def update(self, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Tensor, dict[str, float]]:
        """The gradient of an update that moves nothing, and its values."""
        given = list[Tensor]()
        trainer = self.trainer.variant(all_settings(**ON | {"surrogate": ON["surrogate"] | changes}))
        surrogate = trainer.surrogate
        assert surrogate is not None

        def step(gradients: list[Tensor], term: str) -> float:
            given.extend(gradients)
            return 1.0

        with monkeypatch.context() as patch:
            patch.setattr(surrogate.learner, "step", step)
            values = surrogate.update(trainer, self.rollout, some_advantages(), draws())
        return torch.cat([gradient.flatten() for gradient in given]), values


@pytest.fixture(scope="module")
def held(tiny_teacher: Path) -> Surrogate:
    return Surrogate(tiny_teacher)


@pytest.mark.parametrize("bound", [1e9, 1e-9])
def test_the_update_is_the_groups_preference_on_shared_points(
    held: Surrogate, monkeypatch: pytest.MonkeyPatch, bound: float
) -> None:
    """Of both groups that are drawn, in one plain pass: every image's own loss, weighed by its advantage, its group's
    preference and the step's number; without those that the bound holds back."""
    gradient, values = held.update(monkeypatch, bound=bound)
    drawn = integers(0, 10, 0, "train_rtdmd", 3, "surrogate-step")
    k = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3][drawn]
    own = replace(draws(), stream="train_rtdmd-surrogate-learns")
    every = own.normal("renoise", GROUP_OF)
    losses = {}
    for group in range(COUNT // SIZE):
        rows = [group * SIZE + i for i in range(SIZE)]
        x_s, s, z = held.rollout.states[k + 1][rows], LEVELS[k + 1].expand(SIZE), every[rows]
        t = draw_renoise_time(replace(own, samples=(group,) * SIZE).uniform("time"), s, 0.01, 0.55, 0.98)
        assert t.min() == t.max() and torch.equal(z[0], z[1])
        x_t, target = renoise(x_s, z, s, t), ambient_target(x_s, z, s, t)
        with torch.no_grad():
            v_teacher = held.velocity("teacher", x_t, t, rows)
        v = held.velocity("surrogate", x_t, t, rows)
        found = ((v - target) ** 2).flatten(1).mean(1)
        reference = ((v_teacher - target) ** 2).flatten(1).mean(1)
        advantages = some_advantages()[rows]
        asked = torch.sigmoid((3.0 / SIZE * advantages * (found - reference)).sum()).detach()
        free = torch.ones(SIZE)
        if bound < 1:
            free = torch.where(advantages > 0, found >= reference, found <= reference).float()
        apart = ((v - v_teacher) ** 2).flatten(1).mean(1)
        total = (asked * advantages * free * found + 0.5 * apart).sum() * (k + 1) / 4 / (2 * SIZE)
        learner = held.trainer.surrogate.learner  # type: ignore[union-attr]
        parts = torch.autograd.grad(total, learner.parameters)
        losses[group] = torch.cat([part.flatten() for part in parts]), asked.item(), apart.mean().item()
    pairs = [(one, other) for one in losses for other in losses if one < other]
    sums = {pair: losses[pair[0]][0] + losses[pair[1]][0] for pair in pairs}
    pair = min(sums, key=lambda pair: relative(gradient, sums[pair]))
    assert relative(gradient, sums[pair]) < 1e-4
    assert values["surrogate_order"] == pytest.approx(sum(losses[one][1] for one in pair) / 2, rel=1e-4)
    assert values["surrogate_distance"] == pytest.approx(sum(losses[one][2] for one in pair) / 2, rel=1e-4)


def test_the_generator_follows_surrogate_over_teacher(held: Surrogate) -> None:
    """As matching, with the plain teacher in the place of the fake score and the guided surrogate in the teacher's, at
    a random step's lower level and above `reward_min_sigma`."""
    trainer, p = held.trainer, held.trainer.p
    terms = Terms(trainer.generator, dict(p.weights))
    assert trainer.surrogate is not None
    value = trainer.surrogate.gradient(trainer, held.rollout, draws(), terms, COUNT)
    own = replace(draws(), stream="train_rtdmd-surrogate")
    k = integers(0, 4, 0, own.stream, 3, "step")
    rows, s = list(range(COUNT)), LEVELS[k + 1].expand(COUNT)
    t, z = draw_renoise_time(own.uniform("time"), s, 0.01, 0.25, 0.98), own.normal("renoise")
    point = Renoised(held.rollout.states[k + 1], s, renoise(held.rollout.states[k + 1], z, s, t), t, z)
    with torch.no_grad():
        v_teacher = held.velocity("teacher", point.x_t, t, rows)
        v = held.velocity("surrogate", point.x_t, t, rows, guidance=2.0, null=trainer.null)  # half of what is beyond 1
    direction = matching_direction(point, v_teacher, v, ETA, own)
    x_next, _ = held.rollout.repeat_step(trainer.adapters, slice(0, COUNT), k, held.rollout.states[k])
    loss = dmd_loss(x_next, direction).mean()
    expected = torch.cat([part.flatten() for part in torch.autograd.grad(loss, trainer.generator.parameters)])
    assert relative(flat(terms.sums["surrogate"]), expected) < 1e-4
    assert value == pytest.approx(loss.item(), rel=1e-4)


def test_updates_bring_a_group_into_the_order_of_its_advantages(tiny_teacher: Path) -> None:
    """On the same points again and again σ(S), which is ½ where nothing is learned, falls: good images are met better
    than the teacher meets them, bad ones worse."""
    fresh = Surrogate(tiny_teacher, disturbed=False)
    surrogate = fresh.trainer.surrogate
    assert surrogate is not None
    asked = []
    for _ in range(12):
        values = surrogate.update(fresh.trainer, fresh.rollout, some_advantages(), draws())
        asked.append(values["surrogate_order"])
    assert asked[0] == 0.5
    assert asked == sorted(asked, reverse=True) and asked[-1] < 0.495


def test_a_surrogate_that_is_the_teacher_says_nothing_without_guidance(held: Surrogate, tiny_teacher: Path) -> None:
    backbone = tiny_backbone(tiny_teacher)
    stacks = ADAPTERS["train_rtdmd"] | {"surrogate": ("surrogate",)}
    trainer = held.trainer.variant(
        all_settings(**ON | {"surrogate": {"guidance": 0.0}}), AdapterBank(backbone, adapter(), stacks, 0)
    )
    surrogate = SurrogateReward(trainer.adapters, trainer.p)
    generator = trainer.adapters.trainable("rtdmd")
    trainer.generator = replace(trainer.generator, parameters=generator)
    terms = Terms(trainer.generator, dict(trainer.p.weights))
    assert surrogate.gradient(trainer, held.rollout, draws(), terms, COUNT) == 0
    assert flat(terms.sums["surrogate"]).abs().max() == 0
