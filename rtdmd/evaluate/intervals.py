"""Means with 95 % intervals, for one model or for the paired difference of two.

The tags are strata of equal weight (GenEval's overall score is the mean over its tags). Two intervals are given,
because they answer two questions:

- ``ci95``: how far would the figure move with other noise? Images are independent given the fixed held-out prompts. The
  variance is the images' own within each tag, so it also counts the spread between a tag's prompts and is, if anything,
  too wide. For a 0/1 score it is the binomial interval that most published tables show, with two successes and two
  failures added to the variance (Agresti and Coull 1998), so that 150 of 150 is not shown as certain.
- ``ci95_prompts``: how far would it move with other prompts too? Images of one prompt share its difficulty, so the
  prompts are the clusters of a cluster-robust variance. It is wide where a tag has few prompts (a tag with one prompt
  only falls back to its images), and it is the one to quote for a claim about prompts in general.

Both use Student's t with the strata's pooled degrees of freedom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from rtdmd.common.sums import sum_in_order


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % half-widths; a half-width is None where one image of a tag tells nothing about the
    spread."""

    mean: float
    ci95: float | None  # other noise, same prompts
    ci95_prompts: float | None  # other noise and other prompts
    n: int  # images

    def as_dict(self) -> dict[str, float | None]:
        """Plain numbers for JSON, rounded to 6 decimals."""
        numbers = {"mean": self.mean, "ci95": self.ci95, "ci95_prompts": self.ci95_prompts}
        return {key: None if value is None else round(value, 6) for key, value in numbers.items()}


def estimate(values: Sequence[float] | np.ndarray, prompts: Sequence[int], tags: Sequence[str]) -> Estimate:
    """Mean over tags of the tag means of ``values`` (N,), image i showing prompt ``prompts[i]`` of ``tags[i]``.

    Raises ValueError when empty, of different lengths, or not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    prompt = np.asarray(prompts)
    tag = np.asarray(tags)
    if not len(x) == len(prompt) == len(tag) or len(x) == 0:
        raise ValueError(f"values, prompts and tags need one length above 0, not {len(x)}, {len(prompt)}, {len(tag)}")
    if not np.isfinite(x).all():
        raise ValueError("values hold a number that is not finite")
    strata = [(x[tag == t], prompt[tag == t]) for t in np.unique(tag)]
    spread = _binary_variance if np.isin(x, (0.0, 1.0)).all() else _image_variance
    return Estimate(
        mean=float(np.mean([v.mean() for v, _ in strata])),
        ci95=_half_width([spread(v) for v, _ in strata]),
        ci95_prompts=_half_width([_variance(*_by_prompt(v, p)) for v, p in strata]),
        n=len(x),
    )


def _by_prompt(values: np.ndarray, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts per prompt; per image where the stratum has one prompt only."""
    ids, group = np.unique(prompts, return_inverse=True)
    if len(ids) == 1:
        return values, np.ones(len(values))
    return np.bincount(group, values), np.bincount(group).astype(np.float64)


def _image_variance(values: np.ndarray) -> tuple[float, int] | None:
    """Variance of the mean of independent values (n,), and its degrees of freedom; None when n = 1."""
    return _variance(values, np.ones(len(values)))


def _binary_variance(values: np.ndarray) -> tuple[float, int] | None:
    """The same for zeros and ones: p (1 - p) / n with two of each added."""
    n = len(values) + 4
    share = (values.sum() + 2) / n
    return (float(share * (1 - share) / n), len(values) - 1) if len(values) > 1 else None


def _variance(sums: np.ndarray, counts: np.ndarray) -> tuple[float, int] | None:
    """Variance of a ratio mean from cluster sums (G,) and counts (G,), and its degrees of freedom; None when G = 1."""
    clusters = len(sums)
    if clusters < 2:
        return None
    residual = sums - counts * sums.sum() / counts.sum()
    return float((residual**2).sum() / counts.sum() ** 2 * clusters / (clusters - 1)), clusters - 1


def _half_width(strata: list[tuple[float, int] | None]) -> float | None:
    """95 % half-width of the equally weighted mean of independent strata."""
    known = [s for s in strata if s is not None]
    if len(known) < len(strata):
        return None
    variance = sum_in_order(v for v, _ in known) / len(known) ** 2
    return float(stdtrit(sum(df for _, df in known), 0.975) * np.sqrt(variance))
