"""Moments of gradient estimates whose distribution is known: Gaussian repeats with a mean, a scale and a covariance."""

import math

import pytest
import torch

from tools.variance.moments import (
    Figure,
    Moments,
    jackknife,
    moments,
    products,
    squared_length,
    squared_mean,
    total_variance,
)

DIMS, COUNT = 40, 300


def draws(mean: torch.Tensor, spread: float, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + spread * torch.randn(count, len(mean), generator=generator, dtype=torch.float64)


def figures(rounds: torch.Tensor, reference: torch.Tensor, share: float = 1.0) -> Moments:
    return moments(products(rounds, rounds), products(rounds, reference), products(reference, reference), share)


def test_products_give_the_sample_moments() -> None:
    g = draws(torch.linspace(-1, 1, DIMS).double(), 0.5, 7, 0)
    both = products(g.float(), g[:3].float(), columns=7)
    torch.testing.assert_close(both, g.float().double() @ g[:3].float().double().T, rtol=1e-14, atol=1e-14)
    assert squared_length(products(g, g)).value == pytest.approx(squared_mean(g @ g.T), rel=1e-12)
    gram = g @ g.T
    assert total_variance(gram) == pytest.approx(float(g.var(0).sum()), rel=1e-12)
    pairs = [float(g[i] @ g[j]) for i in range(7) for j in range(7) if i != j]
    assert squared_mean(gram) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)


def test_an_unbiased_estimate_has_scale_and_cosine_one_and_no_bias() -> None:
    mean = torch.linspace(-1, 1, DIMS).double()
    found = figures(draws(mean, 0.5, COUNT, 1), draws(mean, 0.3, COUNT, 2))
    assert abs(found.scale.value - 1) < 4 * found.scale.error < 0.05
    assert abs(found.bias.value) < 4 * found.bias.error < 0.05
    assert abs(found.cosine.value - 1) < 4 * found.cosine.error + 1e-3
    expected = DIMS * 0.25 / float(mean @ mean)
    assert abs(found.noise.value - expected) < 4 * found.noise.error < 0.5 * expected


def test_a_shrunk_and_turned_estimate_is_told_from_noise() -> None:
    """E g = 0.5 G + an orthogonal part of half G's length: scale 0.5, bias 0.25 + 0.25, cosine 1/sqrt 2."""
    mean, turned = torch.zeros(DIMS).double(), torch.zeros(DIMS).double()
    mean[0], turned[1] = 2.0, 1.0
    found = figures(draws(0.5 * mean + turned, 0.4, COUNT, 3), draws(mean, 0.4, COUNT, 4))
    assert found.scale.value == pytest.approx(0.5, abs=4 * found.scale.error) and found.scale.error < 0.02
    assert found.bias.value == pytest.approx(0.5, abs=4 * found.bias.error) and found.bias.error < 0.03
    assert found.cosine.value == pytest.approx(1 / math.sqrt(2), abs=4 * found.cosine.error)
    noise = DIMS * 0.4**2 / 2.0**2
    assert found.noise.value == pytest.approx(noise, abs=4 * found.noise.error)
    half = figures(draws(0.5 * mean + turned, 0.4, COUNT, 3), draws(mean, 0.4, COUNT, 4), 0.5)
    assert half.noise.value == pytest.approx(found.noise.value / 2) and half.bias == found.bias


def test_errors_are_those_of_repeated_studies() -> None:
    """The jackknife's standard errors against the spread of 60 independent studies."""
    mean = torch.linspace(-1, 1, DIMS).double()
    found = [figures(draws(mean, 1.0, 30, 100 + i), draws(mean, 1.0, 40, 900 + i), 0.5) for i in range(60)]
    for name in ("noise", "scale", "bias"):
        named = [getattr(each, name) for each in found]
        values = torch.tensor([figure.value for figure in named])
        claimed = torch.tensor([figure.error for figure in named]).square().mean().sqrt()
        # The spread of 60 values has a relative error of 1/sqrt(118), 0.09; four of these and jackknife's upward bias.
        assert float(values.std() / claimed) == pytest.approx(1.0, abs=0.4)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = draws(torch.zeros(1).double(), 1.0, 20, 5)[:, 0]
    found = jackknife(lambda rows, _: float(x[list(rows)].mean()), list(range(20)), [])
    assert found.error == pytest.approx(float(x.std() / math.sqrt(20)), rel=1e-9)


def test_figures_are_printed_to_two_digits_of_their_error() -> None:
    shown = [str(Figure(*pair)) for pair in [(1.2345, 0.0412), (112.3, 510.0), (0.5, 0.0), (2.0, math.nan)]]
    assert shown == ["1.234 ± 0.041", "112 ± 510", "0.5 ± 0", "2 ± nan"]
