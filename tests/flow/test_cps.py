"""The CPS transition (T3), its log-density, and η* (T2, Gaussian distribution)."""

import math

import pytest
import torch

from rtdmd.flow import cps, path
from rtdmd.oracle.mixture import gaussian


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def point():
    x0, noise, z = draw(6, 2, 1, 1), draw(6, 2, 1, 1, seed=1), draw(6, 2, 1, 1, seed=2)
    sigma, tau = torch.linspace(0.4, 1, 6).double(), torch.linspace(0.1, 0.9, 6).double()
    return path.interpolate(x0, noise, sigma), noise - x0, sigma, tau, x0, noise, z


def test_eta_zero_is_the_euler_step(point):
    x, v, sigma, tau, _, _, z = point
    euler = x + path.expand(tau - sigma, x) * v
    torch.testing.assert_close(cps.cps_step(x, v, sigma, tau, 0.0, z), euler, rtol=0, atol=1e-14)


def test_eta_one_renoises_x0(point):
    x, v, sigma, tau, x0, _, z = point
    torch.testing.assert_close(cps.cps_step(x, v, sigma, tau, 1.0, z), path.interpolate(x0, z, tau), rtol=0, atol=1e-14)


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.9, 1.0])
def test_tau_zero_returns_x0_without_noise(point, eta):
    x, v, sigma, _, x0, _, z = point
    step = cps.cps_step(x, v, sigma, torch.zeros_like(sigma), eta, z)
    torch.testing.assert_close(step, x0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("eta", [0.0, 0.9, 1.0])
def test_the_slope_is_the_means_derivative_by_the_velocity(point, eta):
    x, v, sigma, tau, *_ = point
    one, other = (cps.cps_mean_std(x, velocity, sigma, tau, eta)[0] for velocity in (v, v + 1.5))
    slope = cps.velocity_slope(sigma, tau, eta)
    torch.testing.assert_close((other - one) / 1.5, path.expand(slope, x).expand_as(x), rtol=0, atol=1e-12)
    assert (slope <= tau - sigma + 1e-15).all() and (tau < sigma).all()


@pytest.mark.parametrize("eta", [0.3, 0.9])
def test_noise_coefficients_preserve_the_level(point, eta):
    x, v, sigma, tau, x0, noise, _ = point
    mean, std = cps.cps_mean_std(x, v, sigma, tau, eta)
    kept = (mean - path.expand(1 - tau, x) * x0) / noise
    squares = path.expand(std, x) ** 2 + kept**2
    torch.testing.assert_close(squares, path.expand(tau**2, x).expand_as(x), rtol=0, atol=1e-12)


def test_eta_may_differ_by_sample(point):
    x, v, sigma, tau, _, _, z = point
    etas = torch.linspace(0, 1, 6).double()
    joint = cps.cps_step(x, v, sigma, tau, etas, z)
    for i, eta in enumerate(etas.tolist()):
        alone = cps.cps_step(x[i : i + 1], v[i : i + 1], sigma[i : i + 1], tau[i : i + 1], eta, z[i : i + 1])
        torch.testing.assert_close(joint[i : i + 1], alone, rtol=0, atol=1e-15)


def test_log_density_is_torchs():
    x, mean, std = draw(5, 4, 3, 3), draw(5, 4, 3, 3, seed=1), torch.tensor([0.1, 0.5, 1.0, 2.0, 0.01]).double()
    golden = torch.distributions.Normal(mean, path.expand(std, x).expand_as(x)).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(cps.gaussian_log_prob(x, mean, std), golden, rtol=1e-13, atol=0)


def test_published_log_density_is_the_true_one_times_two_variances_over_dims():
    x, mean, std = draw(3, 4, 3, 3), draw(3, 4, 3, 3, seed=1), torch.tensor([0.9, 0.75, 0.5]).double()
    other = mean + 0.1
    true = cps.gaussian_log_prob(x, other, std) - cps.gaussian_log_prob(x, mean, std)
    published = cps.published_log_prob(x, other) - cps.published_log_prob(x, mean)
    torch.testing.assert_close(published, true * 2 * std**2 / 36, rtol=1e-12, atol=0)


def self_consistency_gap(eta_of):
    """max |E[h(x_r, r) | x_t] - h(x_t, t)| for a Gaussian distribution, where h is affine: E[h] is h at the mean."""
    mixture = gaussian(torch.tensor([0.7, -0.3]), torch.tensor([[0.5, 0.2], [0.2, 0.9]]))
    r, t = torch.tensor([0.0, 0.2, 0.5, 0.5, 0.88]).double(), torch.tensor([0.3, 0.9, 0.6, 0.98, 0.9]).double()
    x, prompt = draw(5, 2), torch.zeros(5, dtype=torch.long)
    mean, _ = cps.cps_mean_std(x, mixture.velocity(x, t, prompt), t, r, eta_of(r, t))
    return float((mixture.posterior_mean(mean, r, prompt) - mixture.posterior_mean(x, t, prompt)).abs().max())


def test_eta_star_is_self_consistent_for_a_gaussian_and_a_fixed_eta_is_not():
    assert self_consistency_gap(cps.eta_star) < 1e-12
    assert self_consistency_gap(lambda r, t: 0.9) > 1e-2
    assert self_consistency_gap(lambda r, t: cps.eta_star(r, t) * 0.95) > 1e-3


def test_eta_star_at_its_ends():
    r, t = torch.tensor([0.0, 0.5, 0.5, 0.3]), torch.tensor([0.5, 1.0, 0.5, 0.3])
    torch.testing.assert_close(cps.eta_star(r, t), torch.tensor([1.0, 1.0, 0.0, 0.0]), rtol=0, atol=4e-4)


def test_transitions_keep_float32_levels_for_bfloat16_samples():
    x, v = torch.randn(4, 2, 3, 3).bfloat16(), torch.randn(4, 2, 3, 3).bfloat16()
    mean, std = cps.cps_mean_std(x, v, torch.full((4,), 0.967), torch.full((4,), 0.875), 0.9)
    assert mean.dtype == std.dtype == torch.float32
    assert abs(float(std[0]) - 0.875 * math.sin(0.45 * math.pi)) < 1e-7
