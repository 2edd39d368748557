"""T8, stage two: the fixed point in closed form, and the two ways to hold the reinforced steps against each other."""

import pytest
import torch

from rtdmd.flow import matching
from rtdmd.oracle import reinforcement
from rtdmd.oracle.identities import LINEAR
from rtdmd.oracle.mixture import Mixture, gaussian, relative_entropy, ring
from rtdmd.oracle.setting import Setting
from rtdmd.oracle.statements import STATEMENTS
from rtdmd.train import rtdmd

EXACT = Setting()
TIMES = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)


def objective(mixture: Mixture, teacher: Mixture, weight: float) -> float:
    """F of the module for prompt 0, the KL by quadrature and E_t by the trapezoid rule: D/w_m times it."""
    parts = [
        t**2 / (1 - t) ** 2 * relative_entropy(mixture.noised(float(t)), teacher.noised(float(t)), 4) for t in TIMES
    ]
    held = torch.trapezoid(torch.stack(parts), TIMES) / (TIMES[-1] - TIMES[0])
    return float(held - mixture.dims * weight * (mixture.mean()[0] @ torch.tensor(LINEAR, dtype=torch.float64)))


def test_the_fixed_point_is_the_lowest_of_the_laws_around_it():
    teacher = gaussian(torch.tensor([0.3, -0.2]), torch.tensor([[0.5, 0.2], [0.2, 0.4]]))
    changes = {"weights": {"matching": 2.0, "backprop": 0.3, "policy": 0.3}}
    end = reinforcement.fixed_point(teacher, changes)
    lowest = objective(end, teacher, 0.3 / 2.0)
    for shift, scale in [((0.02, 0.0), 1.0), ((-0.02, 0.0), 1.0), ((0.0, 0.02), 1.0), ((0.0, -0.02), 1.0)]:
        assert objective(end.affine(torch.tensor(shift).double(), scale), teacher, 0.15) > lowest + 1e-5
    for scale in (0.98, 1.02):  # about its own mean
        mixture = end.affine((1 - scale) * end.mean()[0], scale)
        assert objective(mixture, teacher, 0.15) > lowest + 1e-5


def test_the_fixed_point_is_not_the_tilted_law_and_is_known_for_one_gaussian_only():
    end, linear = reinforcement.fixed_point(reinforcement.MIXTURE), torch.tensor(LINEAR, dtype=torch.float64)
    shift = float((end.mean()[0] - reinforcement.MIXTURE.mean()[0]) @ linear)
    tilted = 0.4 * float(linear @ reinforcement.MIXTURE.covariances[0, 0] @ linear)
    assert shift > 1.3 * tilted
    with pytest.raises(ValueError, match="one Gaussian a prompt, got 3 components"):
        reinforcement.fixed_point(ring())


def bound() -> float:
    return next(s for s in STATEMENTS if s.claim.startswith("matching as a reward")).bound.limit("float64")


def size_of_the_direction(x, direction, groups):
    return -direction.flatten(1).square().mean(1)


def one_sided(x, direction, groups):
    """g_i (x_i - mean): the rectangle in the place of the trapezoid."""
    means = torch.stack([x[groups == group].mean(0) for group in groups.unique()])
    return -((x - means[groups]) * direction).flatten(1).mean(1)


def twice(x, direction, groups):
    return 2 * matching.matching_rewards(x, direction, groups)


@pytest.mark.parametrize("wrong", [size_of_the_direction, one_sided, twice])
def test_another_reward_for_matching_is_not_the_gradient_of_the_chain(monkeypatch, wrong):
    monkeypatch.setattr(rtdmd, "matching_rewards", wrong)
    assert reinforcement.matching_as_a_reward(EXACT) > 2 * bound()


def test_the_last_step_alone_is_not_the_gradient_of_the_chain():
    assert reinforcement.matching_as_a_reward(EXACT, path="last_step") > 2 * bound()


def with_other_fake(changes):
    trainer = reinforcement.start_stage_two(reinforcement.MIXTURE, changes, EXACT, width=8)
    other = reinforcement.MIXTURE.affine(torch.tensor([0.3, 0.4]).double(), 1.3)
    return reinforcement.with_other_fake(trainer, other)


def test_an_epoch_gives_each_image_its_own_matching_reward():
    """Whatever the order in which the last step takes the images: the part of the rollout that it is asked for does
    not matter to a reward of all of them, and the term's gradient is that of `matching_as_a_reward`'s parts."""
    alone = {"fake_updates_per_epoch": 0, "gradient_scaling": "unit_norm"}  # whose terms have norms of their own
    norms = []
    for size in (8, 512):
        changes = {"matching_path": "reward", "last_step_batch_size": size} | alone
        trainer = with_other_fake(changes)
        cond, records, _ = reinforcement.images(trainer.p, reinforcement.MIXTURE)
        draws = reinforcement.BatchDraws(0, "test", 0, tuple(range(len(records))), (2, 1, 1), torch.device("cpu"))
        values = trainer.step(cond, records, draws)
        norms.append(values["grad_matching"])
    values = with_other_fake(alone).step(cond, records, draws)
    assert norms[0] == norms[1] == pytest.approx(values["grad_matching"], rel=0.1)


SHORT = {"matching_path": "reward", "epochs": 80, "ema_decay": 0.9}


def reward_of_nothing(x, direction, groups):
    return 0 * matching.matching_rewards(x, direction, groups)


def half_the_loss(x, direction):
    return matching.dmd_loss(x, direction / 2)


def test_a_short_stage_two_reaches_the_fixed_point():
    end = reinforcement.outcome(EXACT, **SHORT)
    assert abs(end.reward - 1) < 0.1 and abs(end.variance - 1) < 0.1 and end.distance < 0.02


@pytest.mark.parametrize(
    ("name", "wrong"), [("matching_rewards", reward_of_nothing), ("dmd_loss", half_the_loss)], ids=["no reward", "half"]
)
def test_with_a_wrong_formula_it_ends_elsewhere(monkeypatch, name, wrong):
    monkeypatch.setattr(rtdmd, name, wrong)
    end = reinforcement.outcome(EXACT, **SHORT)
    assert end.distance > 0.1 and abs(end.reward - 1) > 0.3
