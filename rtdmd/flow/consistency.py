"""The consistency regulariser of the fake score (paper, AC-DMD; the r = t - δ pair of the public code).

A true posterior mean h is a martingale along the reverse process: E[h(x_r, r) | x_t] = h(x_t, t) for r < t (statement
T2). The caller draws x_r (and x_r' with the same r) from x_t by `cps.cps_step` without gradient; a fixed η only
approximates the reverse kernel, `cps.eta_star` is exact for Gaussian data.
"""

from torch import Tensor

from rtdmd.flow.path import x0_from_velocity
from rtdmd.flow.precision import at_least_float32, mean_dims


def posterior_mean(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """h(x, σ) = x - σ v, the estimate of E[x_0 | x_σ]. x, v (B, C, H, W); sigma (B,)."""
    return x0_from_velocity(x, v, sigma)


def consistency_two_sample(h_t: Tensor, h_r: Tensor, h_r2: Tensor) -> Tensor:
    """mean (h_r - h_t)(h_r' - h_t) over dimensions, (B,).

    Unbiased for |E[h_r | x_t] - h_t|² / D when x_r, x_r' are independent given x_t; may be negative. All (B, C, H,
    W).
    """
    h_t, h_r, h_r2 = at_least_float32(h_t, h_r, h_r2)
    return mean_dims((h_r - h_t) * (h_r2 - h_t))


def consistency_one_sample(h_t: Tensor, h_r: Tensor) -> Tensor:
    """mean (h_r - h_t)² over dimensions, (B,): the two-sample expectation plus the mean variance of h_r given x_t."""
    h_t, h_r = at_least_float32(h_t, h_r)
    return mean_dims((h_r - h_t) ** 2)
