"""Advantage-weighted matching against its closed-form gradient, and where it is DiffusionNFT."""

import pytest
import torch

from rtdmd.flow import awm, nft

SHAPE = (5, 4, 3, 3)
DIMS = 36
ADVANTAGES = torch.tensor([-1.0, -0.3, 0.0, 0.4, 1.0]).double()
SIGMA = torch.tensor([0.5, 0.75, 0.9, 1.0, 0.6]).double()


def tensor(seed: int) -> torch.Tensor:
    return torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed)).double()


def gradient(loss: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), v)[0]


@pytest.mark.parametrize("power", [0.25, 1.0])
def test_the_gradient_is_the_closed_form(power):
    v, target = tensor(0).requires_grad_(), tensor(1)
    error = (v - target).detach()
    size = (error**2).flatten(1).mean(1) + 1e-10
    factor = (2 * ADVANTAGES * SIGMA * size ** (power - 1) / DIMS).view(-1, 1, 1, 1)
    own = gradient(awm.awm_loss(v, target, SIGMA, ADVANTAGES, power), v)
    torch.testing.assert_close(own, factor * error, rtol=1e-10, atol=1e-14)


def test_plain_and_on_policy_it_is_diffusion_nft():
    """σ = 1 and p = 1: A |v - target|², whose gradient is NFT's at b = 1 where no advantage is beyond ±1."""
    v, target, ones = tensor(0).requires_grad_(), tensor(1), torch.ones(5).double()
    plain = gradient(awm.awm_loss(v, target, ones, ADVANTAGES, 1.0), v)
    other = gradient(nft.nft_loss(v, v.detach(), target, nft.optimality(ADVANTAGES), 1.0), v)
    torch.testing.assert_close(plain, other, rtol=1e-10, atol=1e-14)


def test_an_image_that_is_met_has_no_infinite_slope():
    v = tensor(0).requires_grad_()
    assert gradient(awm.awm_loss(v, v.detach(), SIGMA, ADVANTAGES, 0.25), v).tolist() == torch.zeros(SHAPE).tolist()
