"""The tilted teacher against closed forms, its estimators against exact sums over all samples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from rtdmd.evaluate.frechet import frechet_distance
from rtdmd.evaluate.optimum import BETA_LIMIT, bernoulli_kl, optimum, tilted_weights
from tests.evaluate.world_distributions import kl, tilted

P = np.array([0.98, 0.78, 0.5, 0.81, 0.24, 0.52])  # SD3.5-M's row
WEIGHTS = np.full(6, 1 / 6)


@pytest.mark.parametrize(
    ("n", "m", "q", "p", "tolerance"),
    [
        (13, 12, 0.5, 0.25, 0.004),
        (12, 12, 0.8, 0.5, 0.006),
        (50, 50, 0.3, 0.24, 1e-6),
        (300, 25, 0.6, 0.6, 1e-5),
        *((n, 24, p, p, 1e-12) for n in (1, 8, 50) for p in (0.978, 0.5)),  # no bias at all where q = p
    ],
)
def test_the_divergence_of_two_shares_is_unbiased(n: int, m: int, q: float, p: float, tolerance: float) -> None:
    """Mean over all samples; the plug-in figure's is infinite, or too large by about 1 / 2n + 1 / 2m."""
    right, teacher = np.arange(n + 1)[:, None], np.arange(m + 1)[None]
    chance = binom.pmf(right, n, q) * binom.pmf(teacher, m, p)
    found = (chance * bernoulli_kl(right, np.array(n), teacher, np.array(m))).sum()
    assert found == pytest.approx(float(kl(np.array(q), np.array(p))), abs=tolerance)


@pytest.mark.parametrize("beta", [-1.0, -0.5, 0.0, 0.7, 1.5, 3.0])
@pytest.mark.parametrize("p", [0.25, 0.5, 0.9])
def test_partition_and_reward_are_unbiased_at_a_dozen_images(p: float, beta: float) -> None:
    right = np.arange(13)
    distributions = optimum(right[:, None], np.array([12]), np.ones(1))
    chance = binom.pmf(right, 12, p)
    every = np.full(13, beta)
    exact = np.log(1 - p + p * np.exp(beta))
    assert (chance * distributions.log_partition(every)[:, 0]).sum() == pytest.approx(exact, abs=0.004)
    assert (chance * distributions.rewards(every)[:, 0]).sum() == pytest.approx(tilted(np.array(p), beta), abs=0.003)
    if beta == 3.0 and p < 0.9:
        plug_in = (chance * np.log(1 - right / 12 + right / 12 * np.exp(beta))).sum()
        assert abs(plug_in - exact) > 0.03


def test_the_curve_is_the_tilted_laws_own() -> None:
    """From so many images that shares are known: reward and cost of each beta in closed form."""
    distributions = optimum(np.round(P * 1000), np.full(6, 1000), WEIGHTS)
    for beta in (-1.0, 0.3, 1.0, 2.5):
        rho = tilted(P, beta)
        assert float(distributions.reward(beta)) == pytest.approx(rho.mean(), abs=1e-3)
        assert float(distributions.kl(beta)) == pytest.approx(kl(rho, P).mean(), abs=1e-3)
        assert float(distributions.beta_at(distributions.reward(beta))) == pytest.approx(beta, abs=1e-8)
    assert float(distributions.kl(0.0)) == 0 and float(distributions.reward(0.0)) == pytest.approx(P.mean(), abs=1e-12)


def test_no_law_of_its_reward_costs_less_and_the_excess_is_its_divergence_from_the_optimum() -> None:
    distributions = optimum(np.round(P * 1000), np.full(6, 1000), WEIGHTS)
    rng = np.random.default_rng(0)
    for _ in range(10):
        q = rng.uniform(0.05, 0.95, 6)
        beta = float(distributions.beta_at(q.mean()))
        cost = kl(q, P).mean()
        assert cost - float(distributions.kl(beta)) == pytest.approx(kl(q, tilted(P, beta)).mean(), abs=2e-3)
        assert cost > float(distributions.kl(beta))


def test_all_right_costs_the_logarithm_of_the_shares() -> None:
    distributions = optimum(np.array([20, 30]), np.array([40, 40]), np.array([0.25, 0.75]))
    harmonic = [sum(1 / k for k in range(21, 41)), sum(1 / k for k in range(31, 41))]  # of -log(20/40), -log(30/40)
    assert float(distributions.kl(BETA_LIMIT)) == pytest.approx(0.25 * harmonic[0] + 0.75 * harmonic[1], abs=1e-9)
    assert float(distributions.beta_at(1.0)) == pytest.approx(BETA_LIMIT, abs=4)  # as far as a float tells it from 1
    assert float(distributions.beta_at(0.0)) == pytest.approx(-BETA_LIMIT, abs=4)


def test_replicates_are_computed_side_by_side() -> None:
    right = np.array([[20, 30], [10, 40]])
    images, weights = np.array([40, 50]), np.array([[0.5, 0.5], [0.2, 0.8]])
    both = optimum(right, images, weights)
    beta = both.beta_at(np.array([0.7, 0.9]))
    for r in range(2):
        alone = optimum(right[r], images, weights[r])
        assert float(alone.beta_at(np.array([0.7, 0.9])[r])) == pytest.approx(beta[r], abs=1e-8)
        assert float(alone.kl(beta[r])) == pytest.approx(both.kl(beta)[r], abs=1e-12)


def test_weights_make_the_teachers_images_a_sample_of_the_optimum() -> None:
    right = np.array([True, False, False, True, True, False])
    captions = np.array([1, 1, 1, 2, 2, 2])
    weights = tilted_weights(right, captions, np.log(4.0))
    assert weights[:3].tolist() == pytest.approx([2.0, 0.5, 0.5])  # 4 : 1 : 1, three images in all
    assert weights[3:].tolist() == pytest.approx([4 / 3, 4 / 3, 1 / 3])
    assert tilted_weights(right, captions, 0.0).tolist() == [1.0] * 6
    assert tilted_weights(right, captions, -700.0)[:3].tolist() == pytest.approx([0, 1.5, 1.5])
    assert tilted_weights(right, captions, 700.0)[:3].tolist() == pytest.approx([3, 0, 0])


def test_the_distance_is_to_the_weighted_teacher() -> None:
    """Wrong images at 0 and right ones at 1: the tilted teacher has mean ρ and variance ρ (1 - ρ)."""
    right = np.arange(4000) < 1600
    teacher = right[:, None].astype(np.float64)
    model = np.random.default_rng(0).normal(2.0, 1.5, size=(3000, 1))
    weights = tilted_weights(right, np.zeros(4000, dtype=int), 1.0)
    rho = float(tilted(np.array(0.4), 1.0))
    wanted = (model.mean() - rho) ** 2 + (model.std() - np.sqrt(rho * (1 - rho))) ** 2
    assert frechet_distance(model, teacher, weights) == pytest.approx(wanted, rel=1e-3)
    features = np.random.default_rng(1).normal(size=(50, 3))
    assert frechet_distance(features[:20], features[20:], np.ones(30)) == pytest.approx(
        frechet_distance(features[:20], features[20:]), rel=1e-12
    )


def test_what_cannot_be_estimated_is_an_error() -> None:
    with pytest.raises(ValueError, match="every caption needs an image"):
        optimum(np.array([0]), np.array([0]), np.ones(1))
    with pytest.raises(ValueError, match="must sum to 1"):
        optimum(np.array([1, 1]), np.array([2, 2]), np.array([0.5, 0.6]))
    with pytest.raises(ValueError, match="not 1 and 4"):
        frechet_distance(np.zeros((1, 2)), np.zeros((4, 2)), np.ones(4))
