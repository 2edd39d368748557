"""DMDR's fading helps: end points, the distribution of the times, and that nothing is left when they have faded."""

import pytest
import torch

from rtdmd.flow import anneal


def test_scale_falls_along_the_cosine():
    assert anneal.annealed_scale(0.75, 0.0) == 0.75
    assert anneal.annealed_scale(0.75, 0.5) == pytest.approx(0.375)
    assert anneal.annealed_scale(0.75, 1 / 3) == pytest.approx(0.75 * 0.75)
    assert anneal.annealed_scale(0.75, 1.0) == anneal.annealed_scale(0.75, 7.0) == 0.0


@pytest.mark.parametrize(("progress", "a", "b"), [(0.0, 4.0, 1.5), (1 / 3, 3.25, 1.375), (0.5, 2.5, 1.25)])
def test_times_have_the_moments_of_their_law(progress, a, b):
    """Mean and variance of a midpoint grid through the quantile function: an integral, not a sample. The grid's error
    is below 1/n times the largest value, 1e-5."""
    u = ((torch.arange(100_000) + 0.5) / 100_000).double()
    t = anneal.annealed_uniform(u, progress)
    assert float(t.mean()) == pytest.approx(a / (a + b), abs=1e-5)
    assert float(t.var()) == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), abs=2e-5)
    assert bool((t.diff() > 0).all()) and bool((t < 1).all())


def test_faded_times_are_the_uniform_numbers_themselves():
    u = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(anneal.annealed_uniform(u, 1.0), u)
    torch.testing.assert_close(anneal.annealed_uniform(u, 1 - 1e-9), u, rtol=0, atol=1e-6)
    assert float(anneal.annealed_uniform(torch.tensor([1 - 2.0**-24]), 0.0)) < 1
