"""Advantage-weighted matching: the flow-matching loss of a sample, weighed by its advantage (AWM, arXiv 2509.25050).

Minus the loss ℓ = mean |v_θ(x_σ, σ) - v|² of the renoised sample stands for its log-density in GRPO's ratio; on-policy,
where that ratio is 1, the gradient is A ∇ℓ. With the plain ℓ it is that of DiffusionNFT at b = 1 with advantages that
are not clipped to ±1 (`nft.nft_loss`).
"""

from torch import Tensor

from rtdmd.flow.path import at_least_float32

FLOOR = 1e-10  # added to ℓ below the power, whose slope at 0 is infinite (the public code's)


def awm_loss(v: Tensor, target: Tensor, sigma: Tensor, advantages: Tensor, power: float) -> Tensor:
    """A σ/p ((ℓ + 1e-10)^p - 1e-10^p), (B,): the public code's generalised Huber weighting; p = 1 is A σ ℓ.

    v, target (B, C, H, W): trained velocity, noise - x_0; sigma, advantages (B,); power p in (0, 1]. Its gradient in v
    is 2 A σ (ℓ + 1e-10)^(p-1) (v - target) / D.
    """
    v, target, sigma, advantages = at_least_float32(v, target.detach(), sigma, advantages.detach())
    loss = ((v - target) ** 2).flatten(1).mean(1)
    return advantages * sigma / power * ((loss + FLOOR) ** power - FLOOR**power)
