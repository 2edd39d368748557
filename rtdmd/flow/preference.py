"""Group preferences: how a velocity learns to be a reward from scores that have no gradient (TDM-R1, arXiv 2603.07700,
after DGPO).

A surrogate v_φ and a frozen reference v_ψ are compared by their losses ℓ_i = mean |v(x_t, t) - u_i|² on the same point
and target of a group's images. β (ℓ_ψ - ℓ_φ) is the implicit reward, up to a constant of the prompt, and a group's
preference is that the images of positive advantage have more of it than those of negative one:

    L = - (G/β) Σ_groups log σ(-S_g),   S_g = (β/G) Σ_{i in g} A_i (ℓ_φ,i - ℓ_ψ,i)
"""

import torch
from torch import Tensor

from rtdmd.flow.path import at_least_float32


def preference_weights(
    losses: Tensor, reference: Tensor, advantages: Tensor, groups: Tensor, strength: float
) -> Tensor:
    """σ(S_g) of each image's group, (N,): near 0 where the group is ordered as its advantages are, ½ where surrogate
    and reference are the same. Held, σ(S_g) Σ_i A_i ℓ_φ,i has the gradient of L.

    losses ℓ_φ, reference ℓ_ψ, advantages A (N,); groups (N,) integer, whole groups; strength β > 0.
    """
    losses, reference, advantages = at_least_float32(losses.detach(), reference.detach(), advantages.detach())
    index, counts = torch.unique(groups.to(losses.device), return_inverse=True, return_counts=True)[1:]
    terms = strength * advantages * (losses - reference) / counts[index].to(losses.dtype)
    return torch.sigmoid(terms.new_zeros(len(counts)).index_add_(0, index, terms))[index]


def increases_distance(losses: Tensor, reference: Tensor, advantages: Tensor) -> Tensor:
    """Which images (N,) would take the surrogate further from the reference in the direction in which it already is:
    those of A > 0 with ℓ_φ below ℓ_ψ, and those of A <= 0 with ℓ_φ above. They have no gradient while the surrogate is
    too far from the reference (the public code's bound)."""
    return torch.where(advantages > 0, losses < reference, losses > reference)
