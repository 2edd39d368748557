"""Stepwise credit: each stochastic step judged by the rewards of the images that the chain foresees around it.

Stepwise-Flow-GRPO (arXiv 2603.28718) rewards the transition x_k -> x_{k+1} by its gain, r(x̂_0(x_{k+1})) -
r(x̂_0(x_k)), where x̂_0(x) = x - σ v(x, σ) is Tweedie's estimate. At the last level the estimate is the image itself.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from rtdmd.flow.path import at_least_float32, expand

Credit = Literal["trajectory", "gain", "to_go"]


def predicted_x0(x: Tensor, mean: Tensor, sigma: Tensor, tau: Tensor, eta: float) -> Tensor:
    """x̂_0 (B, C, H, W) that a CPS transition of mean `mean` from x (B, C, H, W) at σ to τ aims at (own derivation).

    mean = (1-τ) x̂_0 + τ c ε̂ with ε̂ = (x - (1-σ) x̂_0)/σ and c = cos(ηπ/2) is solved for x̂_0; its factor
    (1-τ) - τ c (1-σ)/σ is above 0 for τ < σ. Spares a forward pass. sigma, tau (B,), 0 <= τ < σ <= 1.
    """
    x, mean, sigma, tau = at_least_float32(x, mean, sigma, tau)
    if not bool((tau < sigma).all()):
        raise ValueError("a transition goes down: every tau must be below its sigma")
    pull = tau * math.cos(eta * math.pi / 2) / sigma
    return (mean - expand(pull, x) * x) / expand((1 - tau) - pull * (1 - sigma), x)


def step_credit(scores: Mapping[int, Tensor], step: int, last: int, credit: Credit) -> Tensor:
    """Reward (N,) of the transition at `step` from scores[k], the rewards (N,) of x̂_0(x_k); `last`: the deterministic
    step, whose estimate is the image.

    trajectory: r(last), the image's; gain: r(step+1) - r(step), greedy: what a step spoils later is not charged to
    it; to_go: r(last) - r(step), the sum of the gains from here on. Since r(step) depends on x_k alone, trajectory
    and to_go give the same expected policy gradient, to_go with a baseline of its own for every image.
    """
    if credit == "trajectory":
        return scores[last]
    later = scores[step + 1 if credit == "gain" else last]
    return torch.sub(*at_least_float32(later, scores[step]))


def scored_steps(trained: tuple[int, ...], last: int, credit: Credit) -> tuple[int, ...]:
    """Levels k below `last` whose x̂_0(x_k) `step_credit` needs, ascending."""
    if credit == "trajectory":
        return ()
    needed = {*trained, *(step + 1 for step in trained)} if credit == "gain" else {*trained}
    return tuple(sorted(needed - {last}))
