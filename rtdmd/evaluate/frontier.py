"""The frontier plot's data: reward against divergence from the teacher, of the optimum, of models, and over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rtdmd.common.errors import UserError
from rtdmd.evaluate.divergence import DIGITS, by_kind, caption_weights, divergence, teacher_optimum
from rtdmd.evaluate.optimum import Optimum
from rtdmd.evaluate.parses import Parses
from rtdmd.evaluate.plan import Item, by_tag, plan_images

POINTS = 24  # of the curve, on either side of the teacher
HIGHEST = 0.995  # mean reward at which the curve ends
PATH_REPLICATES = 50  # of a path's points, whose intervals are thin lines


def teacher_items(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` images of the plan's prompts or somewhat more, as many of each tag, with other noise than the plan's:
    what to draw of the teacher as the distribution to compare with.

    A model's images share the plan's noise with the teacher's own of the plan, so these cannot stand for its
    distribution: the divergence of two samples counts on their independence. UserError where a prompt would be left
    without an image.
    """
    prompts = list({item.prompt.id: item.prompt for item in items}.values())
    tags = by_tag(prompts)
    each = -(-count // len(tags))
    most = max(len(own) for own in tags)
    if each < most:
        raise UserError(
            f"teacher_images: {count} leaves prompts without an image of the teacher, which the divergence from it"
            f" needs; allowed: from {(most - 1) * len(tags) + 1} on"
        )
    after = 1 + max(item.index for item in items)
    return [replace(item, index=item.index + after) for item in plan_images(prompts, each)]


def frontier(
    models: Mapping[str, Parses],
    teacher: Parses,
    seed: int,
    paths: Mapping[str, Mapping[int, Parses]] | None = None,
) -> dict[str, Any]:
    """The figures of every model and the plot around them.

    models: name -> records, all of the same planned images; teacher: records of independent images of the teacher for
    the same captions; paths: name -> epoch -> records of the student of that epoch.

    Returns ``models`` (name -> `divergence`), ``by_kind`` (name -> `by_kind`), ``optimum`` (beta, reward and kl along
    the curve, beta = 0 the teacher), and ``paths`` (name -> `path_points`). Errors as for `divergence`.
    """
    figures = {name: divergence(parses, teacher, seed) for name, parses in models.items()}
    kinds = {name: by_kind(parses, teacher, seed) for name, parses in models.items()}
    walked = {name: path_points(epochs, teacher, seed) for name, epochs in (paths or {}).items()}
    best = teacher_optimum(teacher, caption_weights(next(iter(models.values()))))
    rewards = [found["reward"]["mean"] for found in figures.values()]
    rewards += [point["reward"] for points in walked.values() for point in points]
    return {"models": figures, "by_kind": kinds, "optimum": optimum_curve(best, min(rewards)), "paths": walked}


def path_points(epochs: Mapping[int, Parses], teacher: Parses, seed: int) -> list[dict[str, Any]]:
    """Epoch and `plot_point` of the student of each epoch, in their order."""
    return [
        {"epoch": epoch} | plot_point(divergence(parses, teacher, seed, PATH_REPLICATES))
        for epoch, parses in sorted(epochs.items())
    ]


def plot_point(found: Mapping[str, Any]) -> dict[str, Any]:
    """Reward, kl, optimum and excess of a model whose `divergence` is ``found``, and the half-widths of reward and
    excess over noise."""
    point = {name: found[name]["mean"] for name in ("reward", "kl", "optimum", "excess")}
    return point | {f"{name}_ci95": found[name]["ci95"] for name in ("reward", "excess")}


def optimum_curve(best: Optimum, lowest: float) -> list[dict[str, float]]:
    """Points of the curve from the reward ``lowest``, or the teacher's where that is less, up to HIGHEST, evenly in
    reward on either side of the teacher."""
    own = float(best.reward(0.0))
    below = np.linspace(min(lowest, own), own, POINTS)[:-1] if lowest < own else np.empty(0)
    above = np.linspace(own, max(HIGHEST, own), POINTS)[1:]
    betas = [float(best.beta_at(reward)) for reward in below]
    betas.append(0.0)
    betas += [float(best.beta_at(reward)) for reward in above]
    out = []
    for beta in betas:
        point = {"beta": beta, "reward": float(best.reward(beta)), "kl": float(best.kl(beta))}
        out.append({name: round(value, DIGITS) for name, value in point.items()})
    return out
