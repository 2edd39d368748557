"""What a score alone tells about right and wrong: how often, of a right and a wrong image of one caption, the right one
has the higher score (the area under the curve within captions; 0.5 tells nothing).

Pairs are of one caption, as the images are whose rewards a group's advantages compare: that a score is higher for some
captions than for others is no knowledge of what is right. Ties count half.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rtdmd.evaluate.divergence import DIGITS, Z95
from rtdmd.evaluate.tables import Scores
from rtdmd.world.verifier import VERIFIER

VERDICT = "strict"
OWN_SCORES = ("strict", "lenient", "soft", VERIFIER)  # the verifier's, which the verdict is made of


def auc(values: np.ndarray, right: np.ndarray, captions: np.ndarray) -> dict[str, float | int] | None:
    """The share of ordered pairs and its 95 % half-width, of scores (N,) of images that are ``right`` (N,) bool or not,
    of ``captions`` (N,); None without a pair.

    The interval is over other images of the same captions: the variance of a U statistic's projection, Σ over images of
    the squared sum of their pairs' (share - mean), over the squared number of pairs (DeLong et al. 1988).
    """
    wins = []
    for caption in np.unique(captions):
        own = captions == caption
        gap = np.subtract.outer(values[own & right], values[own & ~right])
        wins.append((gap > 0) + 0.5 * (gap == 0))
    pairs = sum(part.size for part in wins)
    if pairs == 0:
        return None
    mean = sum(float(part.sum()) for part in wins) / pairs
    squares = sum(float(((part - mean).sum(axis) ** 2).sum()) for part in wins for axis in (0, 1))
    return {"mean": round(mean, DIGITS), "ci95": round(Z95 * squares**0.5 / pairs, DIGITS), "pairs": pairs}


def ranking(scores: Scores) -> dict[str, dict[str, Any]]:
    """score -> tag -> `auc` of the verdict, of every score that is not the verifier's own; {} without a verdict."""
    if VERDICT not in scores.columns:
        return {}
    others = {name: values for name, values in scores.columns.items() if name not in OWN_SCORES}
    found: dict[str, dict[str, Any]] = {name: {} for name in others}
    captions = np.asarray(scores.prompts)
    right = scores.columns[VERDICT] == 1
    for tag in dict.fromkeys(scores.tags):
        rows = np.asarray(scores.tags) == tag
        for name, values in others.items():
            found[name][tag] = auc(values[rows], right[rows], captions[rows])
    return found
