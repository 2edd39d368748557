"""Subinterval renoising x_s -> x_t and the ambient flow-matching target, which needs no x_0 (paper, AC-DMD).

    x_t = α x_s + β z,   α = (1-t)/(1-s),   β² = t² - α² s²,   z ~ N(0, I)
    u   = α' x_s + β' z  (derivative in t),  E[u | x_t] = velocity of the noised generator distribution (statement T1)

The paper's v1 writes β = (t-s)/(1-s); that loses noise (for x_s = (1-s) x_0 + s ε the variance of ε must be t²), the
public code and this module use the square root.

And the consistency regulariser of the fake score (paper, AC-DMD; the r = t - δ pair of the public code). A true
posterior mean h is a martingale along the reverse process: E[h(x_r, r) | x_t] = h(x_t, t) for r < t (statement T2).
The caller draws x_r (and x_r' with the same r) from x_t by `cps.cps_step` without gradient; a fixed η only approximates
the reverse kernel, `cps.eta_star` is exact for Gaussian data.
"""

from typing import Literal

import torch
from torch import Tensor

from rtdmd.flow.path import at_least_float32, expand

Weighting = Literal["clamp", "inverse_variance"]
MAX_START = 0.999  # above this s no renoising interval is left that float32 resolves


def draw_renoise_time(u: Tensor, s: Tensor, margin: float, low: float, high: float) -> Tensor:
    """t (B,) in (s, 1) from u (B,) uniform in [0, 1) and the start level s (B,) in [0, 0.999].

    Published: t ~ U(s + margin, 1), then clamped to [low, high]. The clamp makes atoms (at FLUX.2's s = 0.967, 88 %
    of the draws are exactly 0.98) and t <= s as soon as s >= high. Here t is uniform on an interval that exists for
    every s:

        from  max(low, s + min(margin, (1-s)/2))      margin, but never more than half of what is left
        to    max(high, (from + 1)/2)                    high, but always at least half of what is left

    It is the published distribution without its atoms wherever `from` <= 2 high - 1 (0.96), and t - s >= min(margin,
    (1-s)/2) > 0 by construction. Raises ValueError for s outside [0, 0.999] or unordered bounds.
    """
    u, s = at_least_float32(u, s)
    if not (0 < margin < 1 and 0 <= low < high < 1):
        raise ValueError(f"need 0 < margin < 1 and 0 <= low < high < 1, got margin={margin}, low={low}, high={high}")
    if not bool(((s >= 0) & (s <= MAX_START)).all()):
        raise ValueError(f"start levels must lie in [0, {MAX_START}], got {s.min():.4f} to {s.max():.4f}")
    start = (s + ((1 - s) / 2).clamp(max=margin)).clamp(min=low)
    stop = ((start + 1) / 2).clamp(min=high)
    return start + u * (stop - start)


def clamped_renoise_time(u: Tensor, s: Tensor, margin: float, low: float, high: float) -> Tensor:
    """t (B,) as published: U(s + margin, 1) from u (B,) uniform in [0, 1), clamped to [low, high]; s (B,) in [0, high).

    It has atoms at both bounds (2 % of the draws at s = 0, 88 % at s = 0.967). Raises ValueError for s outside [0,
    high), where the clamp would put t at s or below.
    """
    u, s = at_least_float32(u, s)
    if not bool(((s >= 0) & (s < high)).all()):
        raise ValueError(f"start levels must lie in [0, {high}), got {s.min():.4f} to {s.max():.4f}")
    start = s + margin
    return (start + u * (1 - start)).clamp(low, high)


def renoise_coefficients(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """α = (1-t)/(1-s) and β = sqrt(t² - α² s²), each (B,), for 0 <= s < t <= 1.

    β² is computed as (t-s)/(1-s) (t + α s): the same number without the cancellation when t is close to s.
    """
    s, t = at_least_float32(s, t)
    alpha = (1 - t) / (1 - s)
    return alpha, torch.sqrt((t - s) / (1 - s) * (t + alpha * s))


def renoise(x_s: Tensor, z: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """x_t = α x_s + β z. x_s, z (B, C, H, W); s, t (B,)."""
    x_s, z, s, t = at_least_float32(x_s, z, s, t)
    alpha, beta = renoise_coefficients(s, t)
    return expand(alpha, x_s) * x_s + expand(beta, x_s) * z


def ambient_target(x_s: Tensor, z: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """u = α' x_s + β' z with α' = -1/(1-s) and β β' = t + (1-t) s²/(1-s)². x_s, z (B, C, H, W); s, t (B,), s < t."""
    x_s, z, s, t = at_least_float32(x_s, z, s, t)
    _, beta = renoise_coefficients(s, t)
    beta_rate = (t + (1 - t) * (s / (1 - s)) ** 2) / beta
    return expand(-1 / (1 - s), x_s) * x_s + expand(beta_rate, x_s) * z


def target_variance(s: Tensor, t: Tensor) -> Tensor:
    """Irreducible variance per dimension of u given x_t, (B,), when the data have unit variance (own derivation).

    With z = (x_t - α x_s)/β the target is u = (α' - α β'/β) x_s + (β'/β) x_t, and α' - α β'/β = -t / ((1-s) β²). For
    a Gaussian x_s of variance ν = (1-s)² + s², Var(x_s | x_t) = ν β² / (α² ν + β²) and α² ν + β² = (1-t)² + t², hence

        Var(u | x_t) = t² ν / ((1-s)² β² ((1-t)² + t²)).

    Between 1 and 2 at s = 0; 472 at (s, t) = (0.9, 0.91); infinite as t -> s.
    """
    s, t = at_least_float32(s, t)
    _, beta = renoise_coefficients(s, t)
    return t**2 * ((1 - s) ** 2 + s**2) / (((1 - s) * beta) ** 2 * ((1 - t) ** 2 + t**2))


def ambient_weight(s: Tensor, t: Tensor, weighting: Weighting, clamp_max: float) -> Tensor:
    """Weight (B,) of |v - u|² in the fake score's loss.

    'clamp' (published): β² min(1/β², clamp_max), i.e. 1 wherever β² > 1/clamp_max.
    'inverse_variance': 1 / target_variance, the weighted-least-squares optimum among targets of unequal noise. It
    needs no further normalisation: it lies in [1/2, 1] at s = 0, where plain flow matching has weight 1, and below 1
    elsewhere. `clamp_max` is not used.
    """
    if weighting == "inverse_variance":
        return 1 / target_variance(s, t)
    if weighting == "clamp":
        beta_squared = renoise_coefficients(s, t)[1] ** 2
        return beta_squared * (1 / beta_squared).clamp(0, clamp_max)
    raise ValueError(f"weighting must be 'clamp' or 'inverse_variance', got {weighting!r}")


def ambient_loss(
    v: Tensor, target: Tensor, s: Tensor, t: Tensor, weighting: Weighting, clamp_max: float = 10.0
) -> Tensor:
    """Per-sample loss (B,): ambient_weight * mean over dimensions of |v - u|². v, target (B, C, H, W); s, t (B,)."""
    v, target, s, t = at_least_float32(v, target, s, t)
    return ambient_weight(s, t, weighting, clamp_max) * ((v - target) ** 2).flatten(1).mean(1)


def consistency_two_sample(h_t: Tensor, h_r: Tensor, h_r2: Tensor) -> Tensor:
    """mean (h_r - h_t)(h_r' - h_t) over dimensions, (B,).

    Unbiased for |E[h_r | x_t] - h_t|² / D when x_r, x_r' are independent given x_t; may be negative. All (B, C, H,
    W).
    """
    h_t, h_r, h_r2 = at_least_float32(h_t, h_r, h_r2)
    return ((h_r - h_t) * (h_r2 - h_t)).flatten(1).mean(1)


def consistency_one_sample(h_t: Tensor, h_r: Tensor) -> Tensor:
    """mean (h_r - h_t)² over dimensions, (B,): the two-sample expectation plus the mean variance of h_r given x_t."""
    h_t, h_r = at_least_float32(h_t, h_r)
    return ((h_r - h_t) ** 2).flatten(1).mean(1)
