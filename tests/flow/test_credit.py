"""Stepwise credit: the foreseen image from a transition's mean, and gains that telescope to the image's reward."""

import pytest
import torch

from rtdmd.flow import credit
from rtdmd.flow.cps import cps_mean_std
from rtdmd.flow.path import x0_from_velocity


@pytest.mark.parametrize("eta", [0.2, 0.9, 1.0])
def test_foreseen_image_is_the_one_behind_the_transition(eta):
    generator = torch.Generator().manual_seed(0)
    x, v = (torch.randn(4, 3, 2, 2, generator=generator).double() for _ in range(2))
    sigma, tau = torch.tensor([1.0, 0.9, 0.75, 0.5]).double(), torch.tensor([0.9, 0.75, 0.5, 0.0]).double()
    mean, _ = cps_mean_std(x, v, sigma, tau, eta)
    expected = x0_from_velocity(x, v, sigma)
    torch.testing.assert_close(credit.predicted_x0(x, mean, sigma, tau, eta), expected, rtol=1e-11, atol=1e-11)
    assert (mean - expected).abs().max() > 0.1  # not the mean itself, τ = 0 apart


def test_a_transition_that_goes_up_is_refused():
    x, level = torch.zeros(1, 1), torch.tensor([0.5])
    with pytest.raises(ValueError, match="below"):
        credit.predicted_x0(x, x, level, level, 0.9)


def test_credits_by_hand():
    scores = {0: torch.tensor([1.0, 2.0]), 1: torch.tensor([3.0, 2.5]), 2: torch.tensor([2.0, 5.0])}
    scores[3] = torch.tensor([4.0, 4.5])
    gains = [credit.step_credit(scores, k, 3, "gain") for k in range(3)]
    assert [gain.tolist() for gain in gains] == [[2.0, 0.5], [-1.0, 2.5], [2.0, -0.5]]
    for k in range(3):
        torch.testing.assert_close(credit.step_credit(scores, k, 3, "to_go"), sum(gains[k:]))
        assert credit.step_credit(scores, k, 3, "trajectory") is scores[3]


def test_only_the_needed_estimates_are_scored():
    assert credit.scored_steps((0, 2), 3, "trajectory") == ()
    assert credit.scored_steps((0, 2), 3, "gain") == (0, 1, 2)
    assert credit.scored_steps((2,), 3, "gain") == (2,)  # its successor is the image
    assert credit.scored_steps((0, 2), 3, "to_go") == (0, 2)
