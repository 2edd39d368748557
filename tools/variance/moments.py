"""What independent rounds of a gradient estimate say about it: noise, and bias against a reference.

Everything comes from inner products, g_i·g_j of R rounds (and of Q rounds of the reference), so that no covariance is
formed. |E g|² is estimated from pairs of different rounds alone, which noise does not inflate. Standard errors are
jackknife's, over the rounds of both. Own derivation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rtdmd.study.variance_table import Figure


@dataclass(frozen=True)
class Moments:
    """Of estimates g of G, in units of |G|². noise: tr Cov g / |G|², which a shrunk estimate makes small (at scale 1 it
    is noise / scale²). scale: E g · G / |G|², 1 without bias. bias: |E g - G|² / |G|². cosine: of E g and G, 1 where
    only the length differs; nan where noise hides E g."""

    noise: Figure
    scale: Figure
    bias: Figure
    cosine: Figure


def squared_mean(gram: Tensor) -> float:
    """|E g|² without bias, from g_i·g_j (R, R): the mean over pairs of different rounds."""
    count = len(gram)
    return float((gram.sum() - gram.trace()) / (count * (count - 1)))


def total_variance(gram: Tensor) -> float:
    """tr Cov g without bias, from g_i·g_j (R, R)."""
    count = len(gram)
    return float((gram.trace() - gram.sum() / count) / (count - 1))


def products(one: Tensor, two: Tensor, columns: int = 1 << 16) -> Tensor:
    """g_i·h_j (R, Q) in float64 of R vectors and Q vectors (., P), some columns at a time: P is large, and a copy would
    be too."""
    total = torch.zeros(len(one), len(two), dtype=torch.float64)
    for left, right in zip(one.split(columns, 1), two.split(columns, 1), strict=True):
        total += left.double() @ right.double().T
    return total


def squared_length(gram: Tensor) -> Figure:
    """|G|² from G_i·G_j (Q, Q) of Q >= 3 rounds."""
    return jackknife(lambda rows, _: squared_mean(own(gram, rows)), list(range(len(gram))), [])


def moments(gram: Tensor, mixed: Tensor, base: Tensor, share: float = 1.0) -> Moments:
    """Figures of R >= 3 rounds g against Q >= 3 of an unbiased reference G, all independent, from the products g_i·g_j
    (R, R), g_i·G_j (R, Q) and G_i·G_j (Q, Q), for an estimate that is the mean of 1 / ``share`` rounds: its noise is a
    round's times ``share``, its bias is a round's."""

    def cross(a: Sequence[int], b: Sequence[int]) -> float:
        return float(mixed[list(a)][:, list(b)].mean())

    def noise(a: Sequence[int], b: Sequence[int]) -> float:
        return share * total_variance(own(gram, a)) / squared_mean(own(base, b))

    def scale(a: Sequence[int], b: Sequence[int]) -> float:
        return cross(a, b) / squared_mean(own(base, b))

    def bias(a: Sequence[int], b: Sequence[int]) -> float:
        length = squared_mean(own(base, b))
        return (squared_mean(own(gram, a)) - 2 * cross(a, b) + length) / length

    def cosine(a: Sequence[int], b: Sequence[int]) -> float:
        lengths = squared_mean(own(gram, a)) * squared_mean(own(base, b))
        return cross(a, b) / math.sqrt(lengths) if lengths > 0 else math.nan

    first = list(range(len(gram)))
    second = list(range(len(base)))
    return Moments(*(jackknife(figure, first, second) for figure in (noise, scale, bias, cosine)))


def own(gram: Tensor, rows: Sequence[int]) -> Tensor:
    """The products among ``rows``."""
    return gram[list(rows)][:, list(rows)]


def jackknife(
    figure: Callable[[Sequence[int], Sequence[int]], float], first: Sequence[int], second: Sequence[int]
) -> Figure:
    """figure(first, second) and its standard error, leaving out one of either set at a time."""
    variance = 0.0
    for place, rows in enumerate((first, second)):
        values = []
        for out in rows:
            part = [row for row in rows if row != out]
            values.append(figure(part, second) if place == 0 else figure(first, part))
        if values:
            mean = sum(values) / len(values)
            variance += (len(rows) - 1) / len(rows) * sum((value - mean) ** 2 for value in values)
    return Figure(figure(first, second), math.sqrt(variance))
