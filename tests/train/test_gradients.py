"""Terms that share a pass: what the generator is given is what each term's own pass gives, in fewer passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdmd.oracle.backbone import OracleBackbone
from rtdmd.oracle.reinforcement import MIXTURE, images, start_stage_two, with_other_fake
from rtdmd.oracle.setting import Setting
from rtdmd.oracle.training import BatchDraws
from rtdmd.train import rtdmd
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.learner import TERMS, Gradients, Learner, Terms
from tests.train.workshop import adamw

EXACT = Setting()
EPOCH = 10  # in which both random steps are the first
SIZES = {
    "prompts_per_epoch": 3,
    "group_size": 4,
    "micro_batch": 5,
    "last_step_batch_size": 12,
    "fake_batch_size": 12,
    "backprop_at": "last_step",
}
OTHER = MIXTURE.affine(torch.tensor([0.3, 0.4], dtype=torch.float64), 1.3)
ANCHORED = {"policy": 0.3, "matching": 0.7, "backprop": 0.2, "reference_kl": 0.4}
ROWS: dict[str, tuple[dict[str, Any], int, int]] = {
    # settings -> backward passes of the generator for a micro-batch (of three), with sums shared and apart
    "published": ({"matching_path": "last_step"}, 3, 4),
    "both at random steps": ({"matching_path": "random_step", "backprop_at": "random_step"}, 3, 4),
    "one at a random step": ({"matching_path": "last_step", "backprop_at": "random_step"}, 4, 4),
    "whole chain": ({"matching_path": "whole_chain"}, 4, 4),
    "as a reward": ({"matching_path": "reward"}, 3, 6),
    "as a reward, anchored": ({"matching_path": "reward", "weights": ANCHORED}, 3, 8),
    "anchored": ({"matching_path": "last_step", "weights": ANCHORED}, 3, 6),
    "anchor in the place of policy": ({"matching_path": "last_step", "weights": ANCHORED | {"policy": 0.0}}, 3, 4),
    "a gain": ({"matching_path": "last_step", "matching_gain": 0.5}, 3, 4),
    "credit to go": ({"matching_path": "last_step", "credit": "to_go", "weights": ANCHORED}, 3, 6),
    "parts of the loss": ({"matching_path": "last_step", "loss_average": "all_steps", "subset_factor": False}, 3, 4),
}


def epoch(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, dict[str, float], int]:
    """The generator's gradient in float64, an epoch's values, and backward passes a micro-batch."""
    own = SIZES | {"trained_steps": 2, "fake_updates_per_epoch": 0} | changes
    trainer = with_other_fake(start_stage_two(MIXTURE, own, EXACT, width=4), OTHER)
    moved = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from where the last layer starts, so that every layer has a gradient
        for parameter in trainer.generator.parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=moved)
    given, counted = list[Tensor](), Counter[str]()
    real = Gradients.add

    def add(self: Gradients, *rest: Any, **more: Any) -> None:
        counted["passes"] += 1
        real(self, *rest, **more)

    def step(self: Learner, gradients: Sequence[Tensor]) -> float:
        given.extend(gradients)
        return 1.0

    def velocity(self: OracleBackbone, network: Any, x: Tensor, sigma: Tensor, cond: Any, **guided: Any) -> Tensor:
        result: Tensor = network.double()(x.double(), sigma.double(), cond.tensors["prompt"].expand(len(x)))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(OracleBackbone, "velocity", velocity)
        patch.setattr(Gradients, "add", add)
        patch.setattr(Learner, "step", step)
        patch.setattr(trainer, "update_ema", lambda: None)
        cond, records, _ = images(trainer.p, MIXTURE)
        draws = BatchDraws(0, "test", EPOCH, tuple(range(len(records))), (2, 1, 1), torch.device("cpu"))
        values = trainer.step(cond, records, draws)
    return torch.cat([part.flatten() for part in given]), values, counted["passes"] // 3


@pytest.mark.parametrize("name", ROWS)
def test_shared_passes_give_the_gradient_of_each_terms_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, fewer, more = ROWS[name]
    shared, values, passes = epoch(changes, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(rtdmd, "shared_terms", lambda p: {})
        apart, others, all_passes = epoch(changes, monkeypatch)
    assert (passes, all_passes) == (fewer, more)
    assert apart.norm() > 0 and (shared - apart).norm() < 1e-12 * apart.norm()
    same = {name: value for name, value in values.items() if name in others}
    assert same == pytest.approx({name: others[name] for name in same}, rel=1e-9)


def test_the_journal_has_the_norms_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of shared terms that of their weighted sum under both names, and at the images that of each; a level's norm of
    the policy gradient only where no other term is in it."""
    alone = {"grad_policy", "grad_reference_kl", "grad_nft"}

    def norms(changes: dict[str, Any]) -> dict[str, float]:
        return {k: v for k, v in epoch(changes, monkeypatch)[1].items() if k.startswith(("grad_", "image_grad/"))}

    published = norms(ROWS["published"][0])
    levels = {name for name in published if "sigma" in name}
    assert len(levels) == 2
    grad_outputs = {"image_grad/matching", "image_grad/backprop"}
    assert published.keys() == alone | {"grad_matching+backprop"} | levels | grad_outputs
    apart = norms(ROWS["whole chain"][0])
    assert apart.keys() == {f"grad_{name}" for name in TERMS} | levels | grad_outputs
    assert published["image_grad/backprop"] == pytest.approx(apart["image_grad/backprop"])
    anchored = norms(ROWS["anchored"][0])
    assert anchored.keys() == {"grad_policy+reference_kl", "grad_matching+backprop", "grad_nft"} | grad_outputs


def test_each_sum_has_the_weights_of_its_terms() -> None:
    """d/dw of a w, b w², c w at w = 3, the first two in one sum with weights 2 and 5: 2 a + 5 b 6, and c by itself."""
    w = torch.nn.Parameter(torch.tensor([3.0]))
    weights = {"policy": 2.0, "matching": 5.0, "backprop": 7.0}
    shared = dict.fromkeys(("policy", "matching"), "policy+matching")
    terms = Terms(Learner.adamw([w], adamw(0.1)), weights, shared)
    losses = {"policy": (0.5 * w).sum(), "matching": (0.25 * w.square()).sum(), "backprop": (4 * w).sum()}
    terms.add(losses)
    assert terms.sums.keys() == {"policy+matching", "backprop", "reference_kl", "nft"}
    assert terms.sums["policy+matching"].norm() == 2 * 0.5 + 5 * 0.25 * 6 and terms.sums["backprop"].norm() == 4
    over = {name: weight for name, (weight, _) in terms.reduced(Ranks(), 3).items()}
    assert over["policy+matching"] == 1 / 3 and over["backprop"] == 7 / 3
    empty = replace(terms)
    assert empty.sums["policy+matching"].total is None and empty.sums.keys() == terms.sums.keys()
