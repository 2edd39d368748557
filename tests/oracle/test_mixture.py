"""The oracle itself: density, score, velocity, posterior and tilt of the mixture against independent computations."""

import pytest
import torch

from rtdmd.oracle.mixture import gaussian, hermite, mixture_nodes, relative_entropy, ring

MIXTURE = ring()
PROMPT = torch.arange(12) % 3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_density_is_torchs_mixture():
    sigma, x = torch.linspace(0, 1, 12).double(), draw(12, 2)
    for i in range(12):
        level = float(sigma[i])
        covariances = (1 - level) ** 2 * MIXTURE.covariances[PROMPT[i]] + level**2 * torch.eye(2).double()
        parts = torch.distributions.MultivariateNormal((1 - level) * MIXTURE.means[PROMPT[i]], covariances)
        golden = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(MIXTURE.weights[PROMPT[i]]), parts
        )
        measured = MIXTURE.log_density(x[i : i + 1], sigma[i : i + 1], PROMPT[i : i + 1])
        torch.testing.assert_close(measured[0], golden.log_prob(x[i]), rtol=1e-12, atol=1e-12)


def test_score_is_the_densitys_gradient():
    sigma, x = torch.linspace(0.05, 1, 12).double(), draw(12, 2).requires_grad_()
    golden = torch.autograd.grad(MIXTURE.log_density(x, sigma, PROMPT).sum(), x)[0]
    torch.testing.assert_close(MIXTURE.score(x.detach(), sigma, PROMPT), golden, rtol=1e-10, atol=1e-10)


def test_velocity_follows_from_the_score():
    """v = -(x + σ score)/(1-σ), an identity of the linear flow."""
    sigma, x = torch.linspace(0, 0.95, 12).double(), draw(12, 2)
    golden = -(x + sigma[:, None] * MIXTURE.score(x, sigma, PROMPT)) / (1 - sigma[:, None])
    torch.testing.assert_close(MIXTURE.velocity(x, sigma, PROMPT), golden, rtol=1e-10, atol=1e-10)


def test_velocity_at_pure_noise_is_noise_minus_mean():
    x, one = draw(12, 2), torch.ones(12)
    torch.testing.assert_close(MIXTURE.velocity(x, one, PROMPT), x - MIXTURE.mean()[PROMPT], rtol=0, atol=1e-12)


def test_results_keep_the_samples_shape_and_dtype():
    x, sigma = draw(12, 2).float().reshape(12, 2, 1, 1), torch.full((12,), 0.5)
    v = MIXTURE.velocity(x, sigma, PROMPT)
    assert v.shape == x.shape and v.dtype == torch.float32
    torch.testing.assert_close(v.flatten(1), MIXTURE.velocity(x.flatten(1), sigma, PROMPT))


def test_samples_have_the_laws_moments():
    prompt = torch.full((200_000,), 1)
    x = MIXTURE.sample(prompt, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), MIXTURE.mean()[1], rtol=0, atol=0.015)
    torch.testing.assert_close(torch.cov(x.T), MIXTURE.covariance()[1], rtol=0, atol=0.02)


def test_the_posteriors_nodes_have_its_mean_and_an_exact_second_moment():
    x, sigma, prompt = (
        torch.tensor([[0.3, 0.2]]).double(),
        torch.tensor([0.6]).double(),
        torch.zeros(1, dtype=torch.long),
    )
    exact = MIXTURE.posterior_mean(x, sigma, prompt)[0]
    nodes, weights = MIXTURE.posterior_nodes(x, sigma, prompt, order=8)
    torch.testing.assert_close((weights[:, None] * nodes).sum(0), exact, rtol=1e-12, atol=1e-12)
    finer, fine = MIXTURE.posterior_nodes(x, sigma, prompt, order=16)
    second, again = (torch.einsum("n,nd,ne->de", w, at, at) for w, at in ((weights, nodes), (fine, finer)))
    torch.testing.assert_close(second, again, rtol=1e-12, atol=1e-12)


def test_noised_and_affine_laws_are_those_of_the_samples():
    x, zero, half = draw(12, 2), torch.zeros(12), torch.full((12,), 0.5)
    torch.testing.assert_close(
        MIXTURE.noised(0.5).log_density(x, zero, PROMPT), MIXTURE.log_density(x, half, PROMPT), rtol=1e-12, atol=1e-12
    )
    moved = MIXTURE.affine(torch.tensor([0.5, -1.0]), 2.0)
    torch.testing.assert_close(moved.mean(), torch.tensor([0.5, -1.0]) + 2 * MIXTURE.mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved.covariance(), 4 * MIXTURE.covariance(), rtol=1e-12, atol=1e-12)


def test_tilting_a_gaussian_linearly_shifts_it_by_its_covariance():
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.9]], dtype=torch.float64)
    mixture, b = gaussian(torch.zeros(2), covariance), torch.tensor([1.0, -0.5]).double()
    tilted = mixture.tilted(b, torch.zeros(2, 2).double(), 0.3)
    torch.testing.assert_close(tilted.mean()[0], 0.3 * covariance @ b, rtol=1e-12, atol=0)
    torch.testing.assert_close(tilted.covariance()[0], covariance, rtol=1e-12, atol=0)


def test_quadrature_is_exact_for_polynomials_and_the_kl_of_gaussians():
    nodes, weights = hermite(8, 2)
    assert float((weights * nodes[:, 0] ** 4 * nodes[:, 1] ** 2).sum()) == pytest.approx(3)
    nodes, weights = mixture_nodes(MIXTURE, 4)
    torch.testing.assert_close((weights[:, None] * nodes).sum(0), MIXTURE.mean()[0], rtol=1e-12, atol=1e-12)
    q, p = gaussian(torch.tensor([0.3, 0.1]), 0.4 * torch.eye(2)), gaussian(torch.zeros(2), torch.eye(2))
    normal = torch.distributions.MultivariateNormal
    golden = torch.distributions.kl_divergence(
        normal(q.means[0, 0], q.covariances[0, 0]), normal(p.means[0, 0], p.covariances[0, 0])
    )
    torch.testing.assert_close(relative_entropy(q, p, 8), golden, rtol=1e-12, atol=0)
