"""What independent repeats of a gradient estimate say about it: signal, variance, and bias against a reference.

Everything comes from inner products, g_i·g_j of R repeats (and of Q repeats of the reference), so that no covariance is
formed. |E g|² is estimated from pairs of different repeats alone, which noise does not inflate. Standard errors are
jackknife's, over the repeats of both. Own derivation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Figure:
    """A value with its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Moments:
    """noise: tr Cov g / |E g|², 1 where one estimate is as much noise as signal. scale: E g · G / |G|², 1 for an
    unbiased estimate of G. bias: |E g - G|² / |G|². cosine: of E g and G, 1 where only the length differs. All of one
    estimate; None without a reference G."""

    noise: Figure
    scale: Figure | None
    bias: Figure | None
    cosine: Figure | None


def squared_mean(gram: Tensor) -> float:
    """|E g|² without bias, from g_i·g_j (R, R): the mean over pairs of different repeats."""
    count = len(gram)
    return float((gram.sum() - gram.trace()) / (count * (count - 1)))


def total_variance(gram: Tensor) -> float:
    """tr Cov g without bias, from g_i·g_j (R, R)."""
    count = len(gram)
    return float((gram.trace() - gram.sum() / count) / (count - 1))


def moments(repeats: Tensor, reference: Tensor | None = None) -> Moments:
    """Figures of R >= 3 repeats (R, P) against Q >= 3 of an unbiased reference (Q, P), all independent."""
    both = repeats if reference is None else torch.cat([repeats, reference])
    gram, count = (both.double() @ both.double().T).cpu(), len(repeats)
    first, second = list(range(count)), list(range(count, len(both)))
    noise = jackknife(lambda a, _: total_variance(own(gram, a)) / squared_mean(own(gram, a)), first, [])
    if reference is None:
        return Moments(noise, None, None, None)

    def cross(a: Sequence[int], b: Sequence[int]) -> float:
        return float(gram[list(a)][:, list(b)].mean())

    def scale(a: Sequence[int], b: Sequence[int]) -> float:
        return cross(a, b) / squared_mean(own(gram, b))

    def bias(a: Sequence[int], b: Sequence[int]) -> float:
        length = squared_mean(own(gram, b))
        return (squared_mean(own(gram, a)) - 2 * cross(a, b) + length) / length

    def cosine(a: Sequence[int], b: Sequence[int]) -> float:
        lengths = squared_mean(own(gram, a)) * squared_mean(own(gram, b))
        return cross(a, b) / math.sqrt(lengths) if lengths > 0 else math.nan

    return Moments(noise, *(jackknife(figure, first, second) for figure in (scale, bias, cosine)))


def own(gram: Tensor, rows: Sequence[int]) -> Tensor:
    """The products among ``rows``."""
    return gram[list(rows)][:, list(rows)]


def jackknife(
    figure: Callable[[Sequence[int], Sequence[int]], float], first: Sequence[int], second: Sequence[int]
) -> Figure:
    """figure(first, second) and its standard error, leaving out one of either set at a time."""
    variance = 0.0
    for place, rows in enumerate((first, second)):
        left = [[row for row in rows if row != out] for out in rows]
        values = [figure(part, second) if place == 0 else figure(first, part) for part in left]
        if values:
            mean = sum(values) / len(values)
            variance += (len(rows) - 1) / len(rows) * sum((value - mean) ** 2 for value in values)
    return Figure(figure(first, second), math.sqrt(variance))
