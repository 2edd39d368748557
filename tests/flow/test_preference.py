"""Group preferences: the weighted gradient is that of the log-sigmoid objective, and the bound's direction."""

import pytest
import torch

from rtdmd.flow.preference import increases_distance, preference_weights

GROUPS = torch.tensor([4, 4, 4, 7, 7, 7])
ADVANTAGES = torch.tensor([1.0, -0.5, -0.5, 2.0, 0.0, -2.0]).double()
LOSSES = torch.tensor([0.9, 1.2, 1.1, 0.7, 1.0, 1.6]).double()
REFERENCE = torch.tensor([1.0, 1.0, 1.1, 1.0, 1.0, 1.0]).double()


@pytest.mark.parametrize("strength", [1.0, 10.0])
def test_held_weights_give_the_objectives_gradient(strength):
    losses = LOSSES.clone().requires_grad_()
    terms = strength / 3 * ADVANTAGES * (losses - REFERENCE)
    sums = torch.stack([terms[:3].sum(), terms[3:].sum()])
    objective = -(3 / strength) * torch.nn.functional.logsigmoid(-sums).sum()
    (expected,) = torch.autograd.grad(objective, losses)
    weights = preference_weights(LOSSES, REFERENCE, ADVANTAGES, GROUPS, strength)
    torch.testing.assert_close(weights * ADVANTAGES, expected, rtol=1e-12, atol=1e-14)


def test_a_group_in_its_order_asks_for_little_and_an_equal_one_for_half():
    """S = (1/3)(1 * -0.1 - 0.5 * 0.2) and (1/3)(2 * -0.3 - 2 * 0.6) at β = 1."""
    asked = preference_weights(LOSSES, REFERENCE, ADVANTAGES, GROUPS, 1.0)
    sums = torch.tensor([-0.2 / 3] * 3 + [-1.8 / 3] * 3).double()
    torch.testing.assert_close(asked, torch.sigmoid(sums))
    assert preference_weights(REFERENCE, REFERENCE, ADVANTAGES, GROUPS, 1.0).tolist() == [0.5] * 6


def test_the_bound_holds_back_what_goes_on_in_the_same_direction():
    """A good image that is already better met, a bad one that is already worse met; none where both are the same."""
    assert increases_distance(LOSSES, REFERENCE, ADVANTAGES).tolist() == [True, True, False, True, False, True]
