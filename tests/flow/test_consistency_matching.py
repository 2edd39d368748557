"""The consistency estimators' expectations, the matching direction (T4) and its gradient."""

import pytest
import torch

from rtdmd.flow import ambient, matching
from rtdmd.flow.cps import cps_step
from rtdmd.flow.path import expand, x0_from_velocity
from rtdmd.oracle.mixture import gaussian, ring


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_posterior_mean_is_the_laws_own():
    mixture, x, sigma, prompt = (
        ring(),
        draw(6, 2),
        torch.linspace(0.05, 1, 6).double(),
        torch.tensor([0, 1, 2, 0, 1, 2]),
    )
    h = x0_from_velocity(x, mixture.velocity(x, sigma, prompt), sigma)
    torch.testing.assert_close(h, mixture.posterior_mean(x, sigma, prompt), rtol=0, atol=1e-12)


def test_two_samples_are_unbiased_and_one_sample_adds_the_variance():
    n, bias, std = 400_000, torch.tensor([0.2, -0.1]).double(), 0.5
    h_t = draw(1, 2).expand(n, 2)
    h_r, h_r2 = h_t + bias + std * draw(n, 2, seed=1), h_t + bias + std * draw(n, 2, seed=2)
    two, one = ambient.consistency_two_sample(h_t, h_r, h_r2), ambient.consistency_one_sample(h_t, h_r)
    assert float(two.mean()) == pytest.approx(0.025, abs=1e-3)
    assert float(two.min()) < 0
    assert float(one.mean()) == pytest.approx(0.025 + std**2, abs=2e-3)


S = torch.tensor([0.0, 0.5, 0.75, 0.9]).double()
T = torch.tensor([0.5, 0.6, 0.98, 0.91]).double()


def pointwise_gap(eta: float, factor) -> float:
    """Relative error of y_φ - y_ψ = k (score_φ - score_ψ) at random points, for two mixtures (T4)."""
    teacher, fake, x_t = ring(), ring(radius=1.0, variance=0.2), draw(4, 2)
    prompt, noise = torch.tensor([0, 1, 2, 0]), draw(4, 2, seed=3)
    y_fake, y_teacher = (
        cps_step(x_t, mixture.velocity(x_t, T, prompt), T, S, eta, noise) for mixture in (fake, teacher)
    )
    scores = fake.score(x_t, T, prompt) - teacher.score(x_t, T, prompt)
    g = matching.dmd_direction(y_fake, y_teacher, x_t, normalise=False)
    return float((g - expand(factor(S, T, eta), x_t) * scores).norm() / g.norm())


@pytest.mark.parametrize("eta", [0.0, 0.9, 1.0])
def test_direction_is_the_score_difference_times_k(eta):
    assert pointwise_gap(eta, matching.score_factor) < 1e-10


def test_a_wrong_factor_fails_the_same_check():
    assert pointwise_gap(0.9, lambda s, t, eta: (1 - s) * t**2 / (1 - t)) > 1e-2


def test_score_factor_is_positive_and_known_at_s_zero():
    assert bool((matching.score_factor(S, T, 0.0) > 0).all())
    assert float(matching.score_factor(S[:1], T[:1], 0.9)) == pytest.approx(0.5**2 / 0.5)


def test_projections_must_share_their_noise():
    mixture, x_t = ring(), draw(4, 2)
    v = mixture.velocity(x_t, T, torch.zeros(4, dtype=torch.long))
    same, other = (
        cps_step(x_t, v, T, S, 0.9, draw(4, 2)),
        cps_step(x_t, v, T, S, 0.9, draw(4, 2, seed=9)),
    )
    assert torch.equal(same[0], other[0]) and not torch.allclose(same[1], other[1])


def test_gradient_is_kappa_times_the_kl_gradient():
    """q_θ = N(θ, V), p = N(0, W): E[y_φ - y_ψ] through x_s is κ_s ∇_θ KL(q_t || p_t), κ_s = k (1-s)/(1-t)."""
    n, s, t, theta = 200_000, 0.5, 0.7, torch.tensor([0.6, -0.2]).double()
    q, p = gaussian(theta, 0.3 * torch.eye(2)), gaussian(torch.zeros(2), 0.8 * torch.eye(2))
    level, time, prompt = torch.full((n,), s).double(), torch.full((n,), t).double(), torch.zeros(n, dtype=torch.long)
    x_s = (1 - s) * (theta + 0.3**0.5 * draw(n, 2)) + s * draw(n, 2, seed=1)
    x_t, noise = ambient.renoise(x_s, draw(n, 2, seed=2), level, time), draw(n, 2, seed=3)
    y_q, y_p = (cps_step(x_t, mixture.velocity(x_t, time, prompt), time, level, 0.9, noise) for mixture in (q, p))
    gradient = (1 - s) * matching.dmd_direction(y_q, y_p, x_s, normalise=False).mean(0)
    kappa = matching.score_factor(level[:1], time[:1], 0.9) * (1 - s) / (1 - t)
    exact = (1 - t) ** 2 * theta / ((1 - t) ** 2 * 0.8 + t**2)
    torch.testing.assert_close(gradient, kappa * exact, rtol=0.02, atol=0)


def test_normaliser_is_the_samples_mean_distance_to_the_teacher():
    y_fake, y_teacher, x_s = draw(3, 4, 3, 3), draw(3, 4, 3, 3, seed=1), draw(3, 4, 3, 3, seed=2)
    g = matching.dmd_direction(y_fake, y_teacher, x_s, normalise=True)
    for i in range(3):
        expected = (y_fake[i] - y_teacher[i]) / (x_s[i] - y_teacher[i]).abs().mean()
        torch.testing.assert_close(g[i], expected, rtol=1e-14, atol=0)


def test_loss_pushes_exactly_along_the_direction():
    x_s, g = draw(3, 4, 3, 3).requires_grad_(), draw(3, 4, 3, 3, seed=1)
    loss = matching.dmd_loss(x_s, g)
    assert loss.shape == (3,)
    torch.testing.assert_close(loss.detach(), 0.5 * (g**2).flatten(1).mean(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), x_s)[0], g / 36, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["y_fake", "y_teacher", "x_s"])
def test_a_non_finite_tensor_is_named(name):
    tensors = {"y_fake": torch.ones(2, 4), "y_teacher": torch.zeros(2, 4), "x_s": torch.ones(2, 4)}
    tensors[name] = torch.full((2, 4), float("nan"))
    with pytest.raises(FloatingPointError, match=name):
        matching.dmd_direction(**tensors, normalise=True)


def test_a_zero_normaliser_is_an_error_and_not_a_zero():
    with pytest.raises(FloatingPointError, match="direction"):
        matching.dmd_direction(torch.ones(1, 4), torch.zeros(1, 4), torch.zeros(1, 4), normalise=True)


def test_matching_as_a_reward_is_the_objective_itself_where_it_is_quadratic():
    """F = ½ x'Ax + b·x has the direction Ax + b; against the other members' mean the trapezoid is exact."""
    x, groups = draw(9, 3, 1, 1), torch.tensor([5, 5, 5, 2, 2, 2, 2, 9, 9])
    turned = draw(3, 3, seed=1)
    form, slope = turned @ turned.T, draw(3, seed=2)
    direction = (x.flatten(1) @ form + slope).reshape(x.shape)
    objective = torch.einsum("nd,de,ne->n", x.flatten(1), form, x.flatten(1)) / 2 + x.flatten(1) @ slope
    others = [objective[(groups == group) & (torch.arange(9) != i)].mean() for i, group in enumerate(groups)]
    expected = -(objective - torch.stack(others)) / 3
    torch.testing.assert_close(matching.matching_rewards(x, direction, groups), expected, rtol=1e-12, atol=1e-12)
    assert (matching.matching_rewards(x, 2 * direction, groups) - expected).abs().max() > 0.1
    with pytest.raises(ValueError, match="at least two images in every group"):
        matching.matching_rewards(x, direction, torch.tensor([5, 5, 5, 2, 2, 2, 2, 9, 8]))


def test_the_size_of_the_direction_would_not_hold_a_shifted_law():
    """Equal Gaussians one of which is shifted: the same direction everywhere, so its size tells no image from another,
    while the line integral prefers those nearer the teacher."""
    x, t = draw(12, 2), torch.full((12,), 0.5).double()
    teacher, fake = (gaussian(torch.full((2,), shift), 0.3 * torch.eye(2)) for shift in (0.0, 0.8))
    prompt = torch.zeros(12, dtype=torch.long)
    direction = fake.score(x, t, prompt) - teacher.score(x, t, prompt)
    assert float(direction.square().sum(1).std()) < 1e-10
    rewards = matching.matching_rewards(x, direction, prompt)
    assert float(torch.corrcoef(torch.stack([rewards, -x.sum(1)]))[0, 1]) > 0.999
