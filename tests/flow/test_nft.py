"""Negative-aware fine-tuning against its closed-form gradient; GDMD's target makes it matching, weighted."""

import pytest
import torch

from rtdmd.flow import nft
from rtdmd.flow.matching import dmd_loss
from rtdmd.flow.path import x0_from_velocity

SHAPE = (5, 4, 3, 3)
DIMS = 36
R = torch.tensor([0.0, 0.25, 0.5, 0.9, 1.0]).double()


def tensor(seed: int) -> torch.Tensor:
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed)).double()


def test_optimality_by_hand():
    advantages = torch.tensor([-7.0, -1.0, -0.5, 0.0, 0.5, 3.0])
    assert nft.optimality(advantages).tolist() == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0]


def test_loss_by_hand():
    """b = 2 in one dimension: v⁺ = -3 + 2*4 = 5, v⁻ = 9 - 8 = 1, target 2: r 9 + (1-r) 1."""
    v, old, target = (torch.full((1, 1), value).double() for value in (4.0, 3.0, 2.0))
    loss = nft.nft_loss(v, old, target, torch.tensor([0.25]).double(), 2.0)
    assert loss.tolist() == [0.25 * 9 + 0.75 * 1]


@pytest.mark.parametrize("strength", [0.1, 1.0, 2.5])
def test_on_policy_gradient_is_the_closed_form(strength):
    old, target = tensor(0), tensor(1)
    v = old.clone().requires_grad_()
    gradient = torch.autograd.grad(nft.nft_loss(v, old, target, R, strength).sum(), v)[0]
    expected = 2 * strength * (2 * R - 1).view(-1, 1, 1, 1) * (old - target) / DIMS
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_the_published_loss_pulls_every_image_with_the_same_force(strength):
    """On-policy: 2 A σ (v_old - target) / (D mean|v_old - target|), whatever b is; advantages within ±5."""
    old, target = tensor(0), tensor(1)
    advantages = torch.tensor([-5.0, -1.0, 0.0, 2.0, 5.0]).double()
    sigma = torch.tensor([0.5, 0.6, 0.75, 0.9, 1.0]).double()
    v = old.clone().requires_grad_()
    loss = 5 * nft.published_nft_loss(v, old, target, sigma, nft.optimality(advantages / 5), strength)
    gradient = torch.autograd.grad(loss.sum(), v)[0]
    error = old - target
    factor = 2 * advantages * sigma / (DIMS * error.abs().flatten(1).mean(1))
    torch.testing.assert_close(gradient, factor.view(-1, 1, 1, 1) * error, rtol=1e-10, atol=1e-14)


def test_the_published_loss_by_hand():
    """As above with σ = ½, c = 5 and A = -2.5: r = ¼, errors 1.5 and -0.5, each over its own size: 2.5 (r 1.5 + (1-r)
    0.5)."""
    v, old, target = (torch.full((1, 1), value).double() for value in (4.0, 3.0, 2.0))
    half, advantage = torch.tensor([0.5]).double(), torch.tensor([-2.5]).double()
    loss = 5 * nft.published_nft_loss(v, old, target, half, nft.optimality(advantage / 5), 2.0)
    assert loss.tolist() == pytest.approx([2.5 * (0.25 * 1.5 + 0.75 * 0.5)], rel=1e-12)


def test_optimum_moves_towards_good_samples_and_away_from_bad_ones():
    """Minimising in v: v - v_old = (2r-1)/b (target - v_old), the reinforcement guidance of the paper."""
    old, target, strength = tensor(0), tensor(1), 0.5
    best = old + (2 * R - 1).view(-1, 1, 1, 1) / strength * (target - old)
    v = best.clone().requires_grad_()
    gradient = torch.autograd.grad(nft.nft_loss(v, old, target, R, strength).sum(), v)[0]
    assert gradient.abs().max() < 1e-13
    lower = nft.nft_loss(best, old, target, R, strength)
    assert bool((nft.nft_loss(best + 0.1, old, target, R, strength) > lower).all())


def test_no_gradient_runs_into_old_velocity_target_or_optimality():
    v, old, target, r = tensor(0).requires_grad_(), tensor(1).requires_grad_(), tensor(2).requires_grad_(), R.clone()
    r.requires_grad_()
    nft.nft_loss(v, old, target, r, 1.0).sum().backward()
    assert v.grad is not None and old.grad is None and target.grad is None and r.grad is None


def test_gdmd_on_policy_is_matching_weighed_by_the_gain():
    """The gradient in v of the NFT loss at x_tar = x_0 - g is 2 b gain / σ² times that of the matching loss, so the
    whole is the matching direction times λ + γ gain."""
    x, old, g = tensor(0), tensor(1), tensor(2)
    sigma = torch.tensor([0.5, 0.6, 0.75, 0.9, 1.0]).double()
    gain = nft.reward_gain(torch.tensor([0.1, 0.9, 0.4, 0.0, 3.0]), torch.tensor([0.4, 0.4, 0.4, 0.2, 0.0]), R.std())
    v = old.clone().requires_grad_()
    x0 = x0_from_velocity(x, v, sigma)
    matching = torch.autograd.grad(dmd_loss(x0, g).sum(), v, retain_graph=True)[0]
    target = (x - (x0 - g).detach()) / sigma.view(-1, 1, 1, 1)  # the velocity that leads to x_tar
    learned = torch.autograd.grad(nft.nft_loss(v, old, target, 0.5 + 0.5 * gain, 1.0).sum(), v)[0]
    factor = (2 * gain / sigma**2).view(-1, 1, 1, 1)
    torch.testing.assert_close(learned, factor * matching, rtol=1e-10, atol=1e-14)
    assert nft.guided_weight(gain, 1.0)[-1] == 2.0 and nft.guided_weight(gain, 1.0)[2] == 1.0


def test_gain_by_hand_and_without_spread():
    gain = nft.reward_gain(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.4, 0.9]), torch.tensor(0.2))
    torch.testing.assert_close(gain, torch.tensor([1.0, 0.5, -1.0]))
    with pytest.raises(ValueError, match="spread"):
        nft.reward_gain(torch.ones(2), torch.ones(2), torch.tensor(0.0))
