"""Negative-aware fine-tuning: a sample's reward decides whether the velocity is drawn to it or pushed from it.

DiffusionNFT (arXiv 2509.16117) regresses an implicit positive and an implicit negative velocity on the same target:

    v⁺ = (1-b) v_old + b v_θ,   v⁻ = (1+b) v_old - b v_θ,   loss = r |v⁺ - v|² + (1-r) |v⁻ - v|²

r in [0, 1] is the sample's optimality. The public code (NVlabs/DiffusionNFT) compares x̂_0 in place of velocities,
divides each of the two by its mean distance, and the whole by b (`published_nft_loss`). GDMD (arXiv 2604.19009) takes v
from x_tar = x_0 - g, the target of the distribution-matching direction, and r from the reward that x_tar gains over
x_0.
"""

from torch import Tensor

from rtdmd.flow.path import at_least_float32, expand

MIN_DISTANCE = 1e-5  # between an image and its estimate, below which the public code's weight grows no more


def optimality(advantages: Tensor) -> Tensor:
    """r = ½ + ½ clip(A, -1, 1), (B,) -> (B,): ½ says nothing, 1 draws to the sample, 0 pushes from it."""
    (advantages,) = at_least_float32(advantages)
    return 0.5 + 0.5 * advantages.clamp(-1, 1)


def nft_loss(v: Tensor, v_old: Tensor, target: Tensor, r: Tensor, strength: float) -> Tensor:
    """r |v⁺ - target|² + (1-r) |v⁻ - target|², each mean over the dimensions, (B,).

    v, v_old, target (B, C, H, W): trained velocity, the one that made the sample (no gradient), regression target;
    r (B,) in [0, 1]; strength b > 0. On-policy (v = v_old) its gradient in v is 2 b (2r - 1) (v_old - target) / D.
    """
    v, v_old, target, r = at_least_float32(v, v_old.detach(), target.detach(), r.detach())
    positive = (1 - strength) * v_old + strength * v
    negative = (1 + strength) * v_old - strength * v
    to_positive = ((positive - target) ** 2).flatten(1).mean(1)
    to_negative = ((negative - target) ** 2).flatten(1).mean(1)
    return r * to_positive + (1 - r) * to_negative


def published_nft_loss(v: Tensor, v_old: Tensor, target: Tensor, sigma: Tensor, r: Tensor, strength: float) -> Tensor:
    """1/b (r |x̂⁺ - x_0|²/m⁺ + (1-r) |x̂⁻ - x_0|²/m⁻), each mean over the dimensions, (B,); the public code's loss is
    this times c, with r = ½ + A/2c of advantages A within ±c.

    x̂± = x_σ - σ v± and m± = mean |x̂± - x_0|, held and at least 1e-5. Others as `nft_loss` has them. On-policy its
    gradient in v is 2 (2r - 1) σ (v_old - target) / (D mean |v_old - target|): every image pulls with the same force,
    whatever its distance.
    """
    v, v_old, target, sigma, r = at_least_float32(v, v_old.detach(), target.detach(), sigma, r.detach())
    level = expand(sigma, v)
    total = v.new_zeros(len(v))
    for share, sign in ((r, 1.0), (1 - r, -1.0)):
        error = level * (v_old + sign * strength * (v - v_old) - target)
        distance = error.detach().abs().flatten(1).mean(1).clamp(min=MIN_DISTANCE)
        total = total + share * (error**2).flatten(1).mean(1) / distance
    return total / strength


def reward_gain(target_rewards: Tensor, rewards: Tensor, spread: Tensor) -> Tensor:
    """clip((R(x_tar) - R(x_0)) / Z, -1, 1), (B,). spread Z (): standard deviation of R over the batch, > 0."""
    target_rewards, rewards, spread = at_least_float32(target_rewards, rewards, spread)
    if float(spread) <= 0:
        raise ValueError(f"the spread of the rewards must be above 0, got {float(spread)}")
    return ((target_rewards - rewards) / spread).clamp(-1, 1)


def guided_weight(gain: Tensor, strength: float) -> Tensor:
    """1 + γ gain, (B,): what GDMD multiplies an image's matching direction by while on-policy (own derivation).

    From (x_σ, σ) the velocity to x_tar = x_0 - g is v_old + g/σ, so the gradient of
    `nft_loss` in v is -2 b gain g / (σ D); x_0 = x_σ - σ v, so the image moves along -gain g: matching, weighted.
    """
    return 1 + strength * gain
