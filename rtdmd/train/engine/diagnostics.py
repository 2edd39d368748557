"""What the journal says about a step besides its losses, and two faults of an algorithm that runs.

Every name has a slash, so that it stays in the journal: latents, saturated pixels, each reward's spread, advantages,
and gradient norms by the level σ of the sample they came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rtdmd.config.train_rtdmd import GRADED
from rtdmd.train.engine.journal import Journal

if TYPE_CHECKING:
    from rtdmd.config.train_rtdmd import TrainRtdmdParams

CLIP_SHARE = 0.1  # of the clip range, which rounding may take at the first update of an epoch
SILENT_EPOCHS = 20
"""Epochs in a row without a reward that tells two images of a prompt apart, after which stage two stops."""


def at_level(values: Mapping[str, float], names: Iterable[str], sigma: float) -> dict[str, float]:
    """The named values again, those that are there, under their sample's level: ``fake_grad_norm/sigma=0.75``."""
    return {f"{name}/sigma={sigma:.3g}": values[name] for name in names if name in values}


@torch.no_grad()
def latent_values(x: Tensor) -> dict[str, float]:
    """Mean, standard deviation and largest magnitude of latents (B, C, H, W)."""
    mean, std, largest = torch.stack([x.mean(), x.std(), x.abs().max()]).tolist()
    return {"latent/mean": mean, "latent/std": std, "latent/largest": largest}


@dataclass
class SaturationCounter:
    """Counts of decoded pixel values, and of those that the decoder's clamp to [0, 1] holds: no gradient passes
    there."""

    saturated: float = 0.0
    total: int = 0


@torch.no_grad()
def signal_values(scores: Mapping[str, Tensor], groups: Tensor, advantages: Tensor) -> dict[str, float]:
    """Spread of each reward's scores (N,) with the share of groups (N,) in which it tells two images apart; mean and
    ends of the advantages (N,), whose standard deviation is a column of curves.csv."""
    _, group = torch.unique(groups, return_inverse=True)
    values: dict[str, float] = {}
    for name, score in scores.items():
        score = score.float()
        group = group.to(score.device)
        none = score.new_zeros(int(group.max()) + 1)
        lowest = none.scatter_reduce(0, group, score, "amin", include_self=False)
        highest = none.scatter_reduce(0, group, score, "amax", include_self=False)
        informative = (lowest != highest).float().mean()
        figures = torch.stack([score.std(correction=0), score.min(), score.max(), informative]).tolist()
        values |= {
            f"reward/{name}/{what}": x
            for what, x in zip(("std", "min", "max", "frac_informative_groups"), figures, strict=True)
        }
    mean, low, high = torch.stack([advantages.mean(), advantages.min(), advantages.max()]).tolist()
    return values | {"advantage/mean": mean, "advantage/min": low, "advantage/max": high}


def require_signal(journal: Journal, p: TrainRtdmdParams) -> None:
    """FloatingPointError naming the rewards, where none behind the advantages distinguished the images of a prompt for
    SILENT_EPOCHS epochs: every advantage was 0, and a scorer is broken or saturated."""
    seen = [spec.name for spec in p.rewards if spec.policy is not False and spec.weight > 0]
    steps = journal.steps(SILENT_EPOCHS)
    followers = [name for name in GRADED if getattr(p.weights, name) > 0]
    if not followers or len(steps) < SILENT_EPOCHS:
        return
    if all(step[f"reward/{name}/frac_informative_groups"] == 0 for step in steps for name in seen):
        last = ", ".join(f"{name} is {steps[-1][f'reward_{name}']:.4g} on average" for name in seen)
        zero = "policy gradient" if "policy" in followers else f"gradient of weights.{followers[0]}"
        raise FloatingPointError(
            f"for {SILENT_EPOCHS} epochs no reward distinguished the images of a prompt ({last}), so the {zero}"
            " is zero; `rtdmd rewards check` tries the scorers, train_rtdmd.rewards names them, and"
            f" {' and '.join(f'weights.{name}: 0' for name in followers)} trains without them"
        )


def require_on_policy(ratio_error: float, clip_range: float) -> None:
    """FloatingPointError unless max |ratio - 1| at the first update of an epoch is at most a tenth of the clip range.

    The generator has not moved since the rollout, so the ratio is 1 by construction and anything else is an error of
    computation. A tenth of the range leaves nine tenths to what clipping is for; beyond it images are clipped, and
    lose their gradient, by rounding.
    """
    if not ratio_error <= CLIP_SHARE * clip_range:
        raise FloatingPointError(
            f"the policy ratio differs from 1 by {ratio_error:.2g} at the first update of an epoch, above"
            f" {CLIP_SHARE:g} x clip_range: {clip_range:g}; rollout and policy pass disagree about the transition"
            " means: a kernel returns other numbers when it is called again (model.dtype: float32 shows it), or"
            " clip_range is below the rounding of train_rtdmd.density"
        )
