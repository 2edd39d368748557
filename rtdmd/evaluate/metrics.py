"""metrics.json: every figure of every model, real images beside them, and the paired differences that carry the
claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rtdmd.evaluate.diversity import pairwise_diversity
from rtdmd.evaluate.frechet import frechet_distance
from rtdmd.evaluate.frontier import frontier
from rtdmd.evaluate.judge import Judged
from rtdmd.evaluate.names import PAIRS
from rtdmd.evaluate.optimum import tilted_weights
from rtdmd.evaluate.pairs import paired_difference
from rtdmd.evaluate.tables import Scores
from rtdmd.evaluate.world_figures import world_figures

DIGITS = 6


def model_metrics(judged: Judged, steps: int, evaluations: int) -> dict[str, Any]:
    """Scores with intervals, overall and per tag, and the world's figures of one model.

    steps: of its sampler; evaluations: of the transformer per image (a guided step counts two).
    """
    names = list(judged.scores.columns)
    figures: dict[str, float | None] = {}
    if judged.parses is not None:  # of the world's images
        metadata = [item.prompt.metadata or {} for item in judged.items]
        figures = {name: _rounded(value) for name, value in world_figures(judged.parses, metadata).items()}
    per_tag = {}
    for name in names:
        per_tag[name] = {tag: estimate.as_dict() for tag, estimate in judged.scores.per_tag(name).items()}
    return {
        "images": len(judged.items),
        "steps": steps,
        "network_evaluations": evaluations,
        **{name: judged.scores.overall(name).as_dict() for name in names},
        "per_tag": per_tag,
        **figures,
    }


def feature_metrics(judged: Judged, reference: Judged | None, pool: np.ndarray | None) -> dict[str, float | None]:
    """Fréchet distance to the reference features `pool` (M, D), and diversity relative to the reference images'.

    Without reference the diversity is the plain mean distance of unit vectors; {} where no features were computed.
    """
    if judged.features is None:
        return {}
    spread = pairwise_diversity(judged.features, judged.prompt_ids)
    if reference is None or reference.features is None or pool is None:
        return {"diversity": _rounded(spread)}
    unit = pairwise_diversity(reference.features, reference.prompt_ids)
    relative = spread / unit if spread is not None and unit else None
    return {"frechet": _rounded(frechet_distance(judged.features, pool)), "diversity": _rounded(relative)}


def paired_metrics(models: Mapping[str, Judged]) -> dict[str, Any]:
    """Differences first - second over the same prompts and noise, with intervals, for the pairs that were evaluated."""
    found = {}
    for first, second in PAIRS:
        if first in models and second in models:
            found[f"{first}-{second}"] = difference_metrics(models[first].scores, models[second].scores)
    return found


def frontier_metrics(models: Mapping[str, Judged], distribution: Judged, seed: int) -> dict[str, Any]:
    """`frontier` of the models against the teacher's images ``distribution``, and each one's Fréchet distance to these
    images resampled at the β of its reward (with features). ValueError where the verifier read no images.
    """
    parses = {name: judged.parses for name, judged in models.items() if judged.parses is not None}
    if distribution.parses is None or len(parses) < len(models):
        raise ValueError("a divergence needs what the verifier read of the images")
    found = frontier(parses, distribution.parses, seed)
    for name, judged in models.items():
        if judged.features is not None and distribution.features is not None:
            own = found["models"][name]
            weights = tilted_weights(distribution.parses.right, distribution.parses.prompts, own["beta"])
            own["tilted_frechet"] = _rounded(frechet_distance(judged.features, distribution.features, weights))
    return found


def difference_metrics(first: Scores, second: Scores) -> dict[str, Any]:
    """first - second over the same prompts and noise, with intervals, for every score."""
    difference = paired_difference(first, second)
    return {name: difference.overall(name).as_dict() for name in difference.columns}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
