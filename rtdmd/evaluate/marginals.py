"""How far a sample of images is from another one by its marginals: the least divergence of any distribution that has
them.

Let g be statistics of an image (which background, how many objects, how many of a shape, a colour, a cell, a size...).
Among all distributions whose mean of g is the model's, the one closest to the teacher p is an exponential tilt of p,
and so

    KL(q ‖ p) >= sup_θ  θ · E_q g - log E_p exp(θ · g)

for every model q (Donsker and Varadhan 1975; Csiszár 1975). Adding up the divergences of single marginals would be no
bound where the teacher's marginals depend on each other; this is one, whatever the teacher, and it is exact where the
model is such a tilt of the teacher: a collapse of one marginal, of several, or of all objects of an image alike.

Within the right images, and within the wrong ones, the tags are strata: θ is shared, the normaliser is a tag's own.

M images of a teacher show a divergence up to about log M, and no tilt of them has a mean of g outside their hull. So p
is mixed with the model: KL is convex, hence

    KL(q ‖ p) >= KL(q ‖ (1 - ε) p + ε q) / (1 - ε),    ε = 1 / (M + 1),

as if one image more had been drawn of the teacher, and it were the model's. That is finite, log (M + 1) (M + 1) / M at
most, whatever the model draws, and it takes next to nothing from what M images can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rtdmd.common.sums import sum_in_order
from rtdmd.evaluate.parses import Parses
from rtdmd.world.cells import SMALL
from rtdmd.world.grammar import COLORS, SHAPES, captions
from rtdmd.world.render import BACKGROUNDS, CELLS

MAX_OBJECTS = 5  # and more
RIDGE = 1e-3  # of θ in standard deviations: without it a category that the model has left sends θ to infinity
PRIOR = 1.0  # the ridge in images, added to it: θ is normal of variance 1 before any image, which few images need
AT_BOUND = 0.5  # share of a tilted stratum that is the model's own images, above which the teacher's hardly show it
STEPS = 60  # Newton's, at most
KINDS = {
    "background": len(BACKGROUNDS) - 1,
    "number": MAX_OBJECTS,
    "clutter": 1,
    "shapes": len(SHAPES) - 1,
    "colors": 2 * (len(COLORS) - 1),
    "cells": CELLS - 1,
    "sizes": 1,
}
"""How many of the statistics are of which kind, in their order."""
NAMED_COLORS = frozenset(c.tag for c in captions() if any("color" in item for item in c.include))


def statistics(parses: Parses) -> np.ndarray:
    """(N, F) float64: background, number of objects, clutter; objects of each shape, colour, cell and size.

    Colours that the caption names are counted apart from those that are the model's own choice. The last category of
    each is left out: it is what the others leave.
    """
    objects = parses.state == 1
    count = objects.sum(1)
    named = np.isin(parses.tags, list(NAMED_COLORS))
    columns = [parses.background == level for level in range(len(BACKGROUNDS) - 1)]
    columns += [np.minimum(count, MAX_OBJECTS) == number for number in range(MAX_OBJECTS)]
    columns += [(parses.state == -1).any(1)]
    columns += [(objects & (parses.shape == shape)).sum(1) for shape in range(len(SHAPES) - 1)]
    for color in range(len(COLORS) - 1):
        painted = (objects & (parses.color == color)).sum(1)
        columns += [painted * named, painted * ~named]
    columns += [objects[:, cell] for cell in range(CELLS - 1)]
    columns += [(objects & (parses.size == SMALL)).sum(1)]
    return np.stack(columns, axis=1).astype(np.float64)


@dataclass(frozen=True)
class Stratum:
    """Images of one tag, the model's (N, F) and the teacher's (M, F), and their weights in the sample and in R
    replicates of it, (1 + R, N) and (1 + R, M). Both weigh the same in a replicate, which may be nothing."""

    model: np.ndarray
    teacher: np.ndarray
    model_weights: np.ndarray
    teacher_weights: np.ndarray


def of_kind(strata: Sequence[Stratum], kind: str) -> list[Stratum]:
    """The strata with the statistics of one of KINDS alone."""
    first = sum(list(KINDS.values())[: list(KINDS).index(kind)])
    own = slice(first, first + KINDS[kind])
    return [replace(s, model=s.model[:, own], teacher=s.teacher[:, own]) for s in strata]


@dataclass(frozen=True)
class Bound:
    """The bound of a sample (nats, plug-in), its bias in expectation, the bound in R replicates (R,), by how much their
    variance is too large, and the mass of the strata whose figure is the most that so few images can show."""

    value: float
    bias: float
    replicates: np.ndarray
    surplus: float
    at_bound: float = 0.0


def least_divergence(strata: Sequence[Stratum], replicates: int) -> Bound:
    """Σ over strata of mass times the supremum, with its bias and replicates (three at least).

    The supremum is found with a small ridge on θ and reported without it: any θ gives a lower bound. The fewer images,
    the larger the ridge: five images a side would else be told apart by one of thirty statistics whatever they are.

    Replicates keep the sample's θ: to first order a supremum moves as its value at a fixed θ does. Their gradients g
    there tell what a new θ would have gained, g · H⁻¹ g / 2 with the sample's curvature H. The mean of both over the
    replicates, less the sample's value, is the bias: the trace that Takeuchi (1976) takes off a maximised likelihood,
    here for two samples, and what the logarithm of a mean adds to it.

    With S the gradients' covariance, the value at a fixed θ varies by θ · S θ, and θ itself by H⁻¹ S H⁻¹: that adds
    tr (H⁻¹ S)² to it in expectation, where the supremum's own variance has half of that. So the other half is surplus
    (the trace of a square without the bias that it has from so many replicates: Srivastava 2005).
    """
    ridge = _ridge(strata)
    centred, size = _standardised([_with_model(stratum) for stratum in strata])
    if size == 0:
        return Bound(0.0, 0.0, np.zeros(replicates), 0.0)
    theta = _maximum(centred, size, ridge)
    values = []
    gradients = []
    for rows in (slice(0, 1), slice(1, None)):
        values.append(_values(centred, theta, rows))
        gradients.append(_gradients(centred, theta, rows))
    change = gradients[1] - gradients[0]
    curvature = _curvature(centred, theta, ridge)
    gain = 0.5 * (change * np.linalg.solve(curvature, change.T).T).sum(1)
    ratio = np.linalg.solve(curvature, np.atleast_2d(np.cov(change.T)))  # H⁻¹ S
    free = replicates - 1
    square = float(np.trace(ratio @ ratio) - np.trace(ratio) ** 2 / free) * free**2 / ((free - 1) * (free + 2))
    bias = float((values[1] + gain).mean() - values[0][0])
    at_bound = sum_in_order(_mass_at_bound(stratum, theta) for stratum in centred)
    return Bound(float(values[0][0]), bias, values[1], max(0.0, 0.5 * square), at_bound)


def _ridge(strata: Sequence[Stratum]) -> float:
    """RIDGE for each image's mass, and PRIOR images of the effective size (Σ w)² / Σ w² of both samples."""
    mass = sum_in_order(float(stratum.model_weights[0].sum()) for stratum in strata)
    if mass == 0:
        return 0.0
    squares = sum(float((s.model_weights[0] ** 2).sum() + (s.teacher_weights[0] ** 2).sum()) for s in strata)
    return RIDGE * mass + PRIOR * squares / mass


def _with_model(stratum: Stratum) -> Stratum:
    """The stratum with the model's images among the teacher's, together weighing as one of M effective ones more; every
    weight over 1 - ε, so that the bound is that of the teacher alone."""
    weights = stratum.teacher_weights[0]
    odds = float((weights**2).sum() / weights.sum() ** 2)  # ε / (1 - ε) = 1 / M
    return Stratum(
        stratum.model,
        np.concatenate([stratum.teacher, stratum.model]),
        stratum.model_weights * (1 + odds),
        np.concatenate([stratum.teacher_weights, stratum.model_weights * odds], axis=1),
    )


def _mass_at_bound(stratum: Stratum, theta: np.ndarray) -> float:
    """The mass of a stratum of `_with_model` whose tilt consists of the model's images rather than of the teacher's;
    else 0."""
    tilted = _tilted(stratum, theta, slice(0, 1))[0][0]
    count = len(stratum.model)
    at_bound = tilted[-count:].sum() > AT_BOUND * tilted.sum()
    return float(stratum.teacher_weights[0, :-count].sum()) if at_bound else 0.0


def _standardised(strata: Sequence[Stratum]) -> tuple[list[Stratum], int]:
    """The strata with statistics centred within each and scaled over all by the sample's teacher, constant ones left
    out; and how many are left."""
    middles = [stratum.teacher_weights[0] @ stratum.teacher / stratum.teacher_weights[0].sum() for stratum in strata]
    squares = [s.teacher_weights[0] @ (s.teacher - middle) ** 2 for s, middle in zip(strata, middles, strict=True)]
    mass = sum_in_order(float(stratum.teacher_weights[0].sum()) for stratum in strata)
    if not strata or mass == 0:
        return [], 0
    scale = np.sqrt(sum(squares) / mass)
    kept = scale > 1e-9
    centred = [
        Stratum(
            (stratum.model - middle)[:, kept] / scale[kept],
            (stratum.teacher - middle)[:, kept] / scale[kept],
            stratum.model_weights,
            stratum.teacher_weights,
        )
        for stratum, middle in zip(strata, middles, strict=True)
    ]
    return centred, int(kept.sum())


def _tilted(stratum: Stratum, theta: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's weights times exp(θ · g), (R, M), scaled to the mass that they had; and mass · log E_p exp(θ · g),
    (R,). Nothing where a replicate has no mass."""
    weights = stratum.teacher_weights[rows]
    logits = stratum.teacher @ theta
    raised = weights * np.exp(logits - logits.max())
    mass = weights.sum(1)
    sums = raised.sum(1)
    full = mass > 0
    ratio = np.divide(sums, mass, out=np.ones_like(sums), where=full)
    return raised / ratio[:, None], mass * (logits.max() + np.log(ratio))


def _values(strata: Sequence[Stratum], theta: np.ndarray, rows: slice) -> np.ndarray:
    """θ · E_q g - Σ mass log E_p exp(θ · g), (R,)."""
    return sum(s.model_weights[rows] @ (s.model @ theta) - _tilted(s, theta, rows)[1] for s in strata)


def _gradients(strata: Sequence[Stratum], theta: np.ndarray, rows: slice) -> np.ndarray:
    """Its derivative by θ, (R, F)."""
    return sum(s.model_weights[rows] @ s.model - _tilted(s, theta, rows)[0] @ s.teacher for s in strata)


def _curvature(strata: Sequence[Stratum], theta: np.ndarray, ridge: float) -> np.ndarray:
    """The sample's negative second derivative with the ridge, (F, F)."""
    total = np.zeros((len(theta), len(theta)))
    for stratum in strata:
        tilted = _tilted(stratum, theta, slice(0, 1))[0][0]
        mean = tilted @ stratum.teacher
        total += (stratum.teacher * tilted[:, None]).T @ stratum.teacher - np.outer(mean, mean) / tilted.sum()
    return total + ridge * np.eye(len(theta))


def _maximum(strata: Sequence[Stratum], size: int, ridge: float) -> np.ndarray:
    """θ (F,) of the sample's largest bound less the ridge, by Newton steps that are halved until they rise."""

    def height(at: np.ndarray) -> float:
        return float(_values(strata, at, slice(0, 1))[0] - 0.5 * ridge * at @ at)

    theta = np.zeros(size)
    for _ in range(STEPS):
        gradient = _gradients(strata, theta, slice(0, 1))[0] - ridge * theta
        step = np.linalg.solve(_curvature(strata, theta, ridge), gradient)
        if gradient @ step < 1e-12:
            return theta
        length = 1.0
        while length > 1e-9 and height(theta + length * step) < height(theta) + 1e-4 * length * gradient @ step:
            length /= 2
        theta = theta + length * step
    raise ArithmeticError(f"the bound's supremum was not found in {STEPS} Newton steps")
