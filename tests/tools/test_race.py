"""What we race against computes what we compute: the restated public steps have the trainers' gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from torch import Tensor

from rtdmd.backbones import Conditioning
from rtdmd.common.rng import permutation
from rtdmd.config import RECIPES, preset
from rtdmd.config.presets import merged
from rtdmd.train.acdmd import AcdmdTrainer
from rtdmd.train.learner import Learner
from rtdmd.train.rtdmd import RtdmdTrainer
from tests.train.test_published_steps import (
    GROUP_OF,
    GUIDANCE,
    PROMPTS,
    SIZE,
    TOLERANCE,
    difference,
    draws_one,
    draws_two,
    trainer_two,
)
from tests.train.workshop import conditioning, disturb, roles_on, tiny_backbone
from tools.race.__main__ import numbers
from tools.race.models import Sizes, settings
from tools.race.public import Learnt, Public


class Watched(Learnt):
    """Keeps its gradients and learns nothing."""

    found: Sequence[Tensor] = ()

    def step(self) -> None:
        self.found = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.optimizer.zero_grad(set_to_none=True)


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensor]]:
    """Of each role's last update by a trainer, which learns nothing."""
    found: dict[str, list[Tensor]] = {}

    def step(self: Learner, gradients: Sequence[Tensor], term: str = "") -> float:
        found[self.role.split(" (")[0]] = list(gradients)
        return 0.0

    monkeypatch.setattr(Learner, "step", step)
    return found


def public_on(trainer: AcdmdTrainer | RtdmdTrainer, fake: Learner) -> tuple[Public, dict[str, Watched]]:
    """The public steps on a trainer's adapters, and what each role would learn from."""
    null = conditioning(1, "null")

    def velocity(role: str, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        guidance = GUIDANCE if role == "teacher" else 1.0
        return trainer.adapters.velocity(role, x, sigma, cond, guidance=guidance, null=null)

    learners = {"generator": trainer.generator, "fake": fake}
    learnt = {role: Watched(one.parameters, one.optimizer, 1.0) for role, one in learners.items()}
    rewards = trainer.rewards.rewards if isinstance(trainer, RtdmdTrainer) else {}
    return Public(trainer.params, velocity, learnt, trainer.sigmas, trainer.backbone.decode, rewards), learnt


def test_the_turns_of_stage_one(tiny_teacher: Path, gradients: dict[str, list[Tensor]]) -> None:
    sizes = {"iterations": 10, "batch_size": PROMPTS, "micro_batch": PROMPTS, "recipe": "custom"}
    recipe = {"train_acdmd": RECIPES["published"]["train_acdmd"]}
    params = preset("smoke", merged(recipe, {"model": {"guidance": GUIDANCE}, "train_acdmd": sizes}))
    backbone = tiny_backbone(tiny_teacher)
    bank = roles_on(backbone, "train_acdmd")
    disturb(bank, "acdmd", "fake")
    trainer = AcdmdTrainer(params, backbone, conditioning(1, "null"), adapters=bank)
    cond = conditioning(PROMPTS)
    public, learnt = public_on(trainer, trainer.fakes["fake"])
    for fake, name in ((True, "fake score"), (False, "generator")):
        trainer.update(cond, draws_one(), fake=fake, generator=not fake)
        turn = public.update_fake if fake else public.update_generator
        turn(cond, draws_one(), trainer.draw_stop(draws_one()))
        assert difference(gradients[name], learnt["fake" if fake else "generator"].found) < TOLERANCE


def test_the_epoch_of_stage_two(tiny_teacher: Path, gradients: dict[str, list[Tensor]]) -> None:
    trainer = trainer_two(tiny_teacher, micro_batch=SIZE)
    cond = conditioning(len(GROUP_OF) // SIZE).repeat_interleave(SIZE)
    records = [{"prompt": f"p{group}", "metadata": None} for group in GROUP_OF.tolist()]
    public, learnt = public_on(trainer, trainer.fake)
    trainer.step(cond, records, draws_two())
    trained = permutation(3, 0, "train_rtdmd", 4, "subset")[:2]
    public.epoch(cond, records, GROUP_OF, trained, draws_two())
    assert difference(gradients["fake score"], learnt["fake"].found) < TOLERANCE
    assert difference(gradients["generator"], learnt["generator"].found) < TOLERANCE


def test_the_race_is_run_at_the_published_settings() -> None:
    """A round of stage one stops once at each of the four steps."""
    params = settings(Sizes(prompts=2, group=3))
    assert params.train_acdmd.recipe == params.train_rtdmd.recipe == "published"
    assert len(numbers(params, "fake turn", 0)) == 4
    assert numbers(params, "epoch", 3) == [3]
