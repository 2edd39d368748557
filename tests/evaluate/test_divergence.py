"""Divergence and excess on distributions that are known: the teacher, its optimum, one close to it, and collapsed
ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.special import rel_entr

from rtdmd.common.errors import UserError
from rtdmd.evaluate.divergence import by_kind, caption_weights, divergence, teacher_optimum
from rtdmd.evaluate.intervals import estimate
from rtdmd.evaluate.marginals import KINDS
from rtdmd.evaluate.parses import Parses
from tests.evaluate.world_distributions import bank, draw, kl, tilted

FIGURES = ("kl", "optimum", "excess", "right_or_wrong", "within_right", "within_wrong")
REPETITIONS = 12


def tilt_cost(distribution: Parses, beta: np.ndarray | float) -> tuple[float, float]:
    """Reward and divergence, of right or wrong, of the distribution tilted by exp(beta r), captions as `draw` weighs
    them; ``beta``: of each caption (C,), or one for all."""
    p = np.array(
        [distribution.right[distribution.prompts == caption].mean() for caption in np.unique(distribution.prompts)]
    )
    weights = caption_weights(draw(distribution, np.ones(len(distribution)), 300, np.random.default_rng(0)))
    share = np.array([weights[caption] for caption in sorted(weights)])
    rho = tilted(p, beta)
    return float(share @ rho), float(share @ kl(rho, p))


def cost(distribution: Parses, weights: np.ndarray) -> float:
    """KL of the distribution with these weights within each caption, captions as `draw` weighs them."""
    share = caption_weights(draw(distribution, np.ones(len(distribution)), 300, np.random.default_rng(0)))
    total = 0.0
    for caption, weight in share.items():
        q = weights[distribution.prompts == caption] / weights[distribution.prompts == caption].sum()
        total += weight * rel_entr(q, 1 / len(q)).sum()
    return total


def repeated(weights: np.ndarray, per_tag: int = 300) -> list[dict[str, Any]]:
    """The figures of samples of the bank with these weights, each against a sample of the bank itself."""
    distribution, rng = bank(), np.random.default_rng(0)
    teacher = np.ones(len(distribution))
    return [
        divergence(
            draw(distribution, weights, per_tag, rng), draw(distribution, teacher, per_tag, rng), seed, replicates=60
        )
        for seed in range(REPETITIONS)
    ]


def check(found: list[dict[str, Any]], name: str, truth: float, least_cover: int) -> None:
    """No bias beyond the repetitions' noise, the truth in nearly every interval, and intervals of the right size."""
    means = np.array([one[name]["mean"] for one in found])
    widths = np.array([one[name]["ci95"] for one in found])
    spread = means.std(ddof=1)
    assert abs(means.mean() - truth) < 3 * spread / np.sqrt(len(found)), (name, means.mean())
    assert (np.abs(means - truth) <= widths).sum() >= least_cover, name
    assert 0.65 < widths.mean() / (1.96 * spread) < 2.2, (name, widths.mean(), 1.96 * spread)


def test_the_teacher_against_itself_is_0_within_its_interval() -> None:
    found = repeated(np.ones(len(bank())))
    for name in ("kl", "excess", "right_or_wrong"):
        check(found, name, 0.0, REPETITIONS - 2)
    assert np.mean([one["excess"]["ci95"] for one in found]) < 0.03
    assert all(abs(one["beta"]) < 0.5 for one in found)


def test_the_tilted_teacher_costs_the_optimum_and_has_no_excess() -> None:
    distribution = bank()
    reward, cost = tilt_cost(distribution, 1.3)
    found = repeated(np.exp(1.3 * distribution.right))
    check(found, "kl", cost, REPETITIONS - 2)
    check(found, "optimum", cost, REPETITIONS - 2)
    check(found, "excess", 0.0, REPETITIONS - 2)
    assert np.mean([one["reward"]["mean"] for one in found]) == pytest.approx(reward, abs=0.01)
    assert np.mean([one["beta"] for one in found]) == pytest.approx(1.3, abs=0.1)


def test_a_law_of_less_reward_than_the_teacher_has_its_optimum_too() -> None:
    distribution = bank()
    reward, cost = tilt_cost(distribution, -0.6)
    rng = np.random.default_rng(3)
    found = divergence(
        draw(distribution, np.exp(-0.6 * distribution.right), 300, rng),
        draw(distribution, np.ones(len(distribution)), 300, rng),
    )
    assert found["reward"]["mean"] == pytest.approx(reward, abs=0.03)
    assert found["optimum"]["mean"] == pytest.approx(cost, abs=0.02) and found["beta"] < -0.4
    assert abs(found["excess"]["mean"]) < found["excess"]["ci95"]


def test_a_collapsed_background_costs_the_logarithm_of_its_share() -> None:
    """The images of one background of three: log 3 within right and wrong ones, but for the bank's own shares."""
    distribution = bank()
    weights = np.exp(1.3 * distribution.right) * (distribution.background == 0)
    rng = np.random.default_rng(4)
    found = divergence(draw(distribution, weights, 300, rng), draw(distribution, np.ones(len(distribution)), 300, rng))
    assert found["excess"]["mean"] == pytest.approx(np.log(3), abs=found["excess"]["ci95"])
    assert found["excess"]["ci95"] < 0.12
    shares = [found[name]["mean"] for name in ("within_right", "within_wrong")]
    reward = found["reward"]["mean"]
    assert shares == pytest.approx([reward * np.log(3), (1 - reward) * np.log(3)], abs=0.09)
    assert found["right_or_wrong"]["mean"] == pytest.approx(found["optimum"]["mean"], abs=0.03)


@pytest.mark.parametrize(("beta", "wrong"), [(0.0, (60, 200)), (2.0, (5, 25)), (3.0, (2, 10))])
def test_few_wrong_images_unlike_the_teachers_cost_what_they_can_show(beta: float, wrong: tuple[int, int]) -> None:
    """Of 1800: small objects on one background of three, as one in ten of the teacher's wrong images. Of the demo's
    student, whose wrong images were as few and as unlike, the part of the wrong ones once came out at 88 nats each."""
    distribution, rng = bank(), np.random.default_rng(7)
    kept = (distribution.background == 0) & ((distribution.size == 9) == (distribution.state == 1)).all(1)
    shares = np.array(
        [
            kept[~distribution.right & (distribution.prompts == caption)].mean()
            for caption in np.unique(distribution.prompts)
        ]
    )
    truth = cost(distribution, np.where(distribution.right, np.exp(beta), kept))
    within = truth - cost(distribution, np.where(distribution.right, np.exp(beta), shares[distribution.prompts]))
    parts = []
    for seed in range(3):
        model = draw(distribution, np.where(distribution.right, np.exp(beta), kept), 300, rng)
        teacher = draw(distribution, np.ones(len(distribution)), 150, rng)
        found = divergence(model, teacher, seed, replicates=40)
        count = int((~model.right).sum())
        most = max(int((~teacher.right & (teacher.tags == tag)).sum()) for tag in np.unique(teacher.tags))
        assert wrong[0] <= count <= wrong[1]
        assert 0 < found["within_wrong"]["mean"] < count / 1800 * np.log(most + 1) * (most + 1) / most
        assert abs(found["kl"]["mean"] - truth) < found["kl"]["ci95"]
        parts.append(found["within_wrong"])
    means, widths = (np.array([part[name] for part in parts]) for name in ("mean", "ci95"))
    assert abs(means.mean() - within) < widths.mean()


def test_as_few_images_as_a_look_has_say_what_many_say() -> None:
    """Fifty images per tag, nine of them wrong, on one background of three. With marginals of fewer than twenty wrong
    images left out the mean was at half the truth."""
    distribution, rng = bank(), np.random.default_rng(9)
    weights = np.exp(1.3 * distribution.right) * (distribution.background == 0)
    found = [
        divergence(
            draw(distribution, weights, 50, rng),
            draw(distribution, np.ones(len(distribution)), 150, rng),
            seed,
            replicates=40,
        )["kl"]
        for seed in range(4)
    ]
    means, widths = (np.array([one[name] for one in found]) for name in ("mean", "ci95"))
    assert abs(means.mean() - cost(distribution, weights)) < widths.mean() / np.sqrt(len(found))


def test_a_kind_alone_has_the_divergence_of_its_own_marginals() -> None:
    """One background of three: log 3, and nothing of sizes, colours and cells, which are independent of it."""
    distribution, rng = bank(), np.random.default_rng(8)
    model, teacher = (
        draw(distribution, distribution.background == 0, 150, rng),
        draw(distribution, np.ones(len(distribution)), 150, rng),
    )
    found = by_kind(model, teacher)
    assert found["background"] == pytest.approx(np.log(3), abs=0.1)
    assert list(found) == list(KINDS) and found["clutter"] == 0
    assert all(abs(found[kind]) < 0.05 for kind in KINDS if kind != "background")


def test_a_caption_that_collapses_alone_is_seen_by_its_share() -> None:
    """Every other caption gets better and the rest worse: the mean of KL(Bernoulli q_c ‖ Bernoulli p_c)."""
    distribution = bank()
    even = distribution.prompts % 2 == 0
    weights = np.exp(np.where(even, 2.5, -0.5) * distribution.right)
    _, cost = tilt_cost(distribution, np.where(np.unique(distribution.prompts) % 2 == 0, 2.5, -0.5))
    found = repeated(weights)
    check(found, "right_or_wrong", cost, REPETITIONS - 2)
    assert np.mean([one["excess"]["mean"] for one in found]) > 0.1


def test_captions_weigh_as_in_the_strict_score() -> None:
    distribution = bank()
    sample = draw(distribution, np.ones(len(distribution)), 40, np.random.default_rng(0))
    weights = caption_weights(sample)
    assert sum(weights.values()) == pytest.approx(1)
    mean = sum(weights[int(c)] * sample.right[sample.prompts == c].mean() for c in np.unique(sample.prompts))
    strict = estimate(sample.right.astype(float), sample.prompts.tolist(), sample.tags.tolist())
    assert mean == pytest.approx(strict.mean, abs=1e-12)
    assert float(teacher_optimum(sample, weights).reward(0.0)) == pytest.approx(strict.mean, abs=1e-9)


def test_the_figures_are_plain_numbers_that_a_seed_fixes() -> None:
    distribution, rng = bank(), np.random.default_rng(5)
    model, teacher = (draw(distribution, np.ones(len(distribution)), 60, rng) for _ in range(2))
    found = divergence(model, teacher, 0, replicates=20)
    assert json.loads(json.dumps(found)) == found == divergence(model, teacher, 0, replicates=20)
    assert list(found) == ["reward", "beta", *FIGURES, "at_bound"]
    assert found["kl"]["mean"] == pytest.approx(
        sum(found[name]["mean"] for name in ("right_or_wrong", "within_right", "within_wrong")), abs=2e-6
    )
    assert found["excess"]["mean"] == pytest.approx(found["kl"]["mean"] - found["optimum"]["mean"], abs=2e-6)
    assert divergence(model, teacher, 1, replicates=20)["kl"]["ci95"] != found["kl"]["ci95"]
    order = rng.permutation(len(teacher))
    assert divergence(model, teacher.rows(order), 0, replicates=20)["optimum"]["mean"] == found["optimum"]["mean"]


def test_other_captions_widen_the_interval() -> None:
    distribution, rng = bank(), np.random.default_rng(6)
    even = distribution.prompts % 2 == 0
    weights = np.exp(np.where(even, 2.5, -0.5) * distribution.right)
    found = divergence(draw(distribution, weights, 150, rng), draw(distribution, np.ones(len(distribution)), 150, rng))
    assert found["excess"]["ci95_prompts"] > 1.5 * found["excess"]["ci95"]


def test_a_caption_without_teacher_images_is_named() -> None:
    distribution = bank()
    with pytest.raises(UserError, match="the teacher has no image of prompt 7, which a model was judged on"):
        divergence(distribution, distribution.rows(distribution.prompts != 7))
    with pytest.raises(ValueError, match="three replicates at least, not 2"):
        divergence(distribution, distribution, replicates=2)
