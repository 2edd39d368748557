"""How far each model is from the teacher, and how much further than it had to be for its reward.

For every model, from the verifier's records of its images and of independent images of the teacher for the same
captions (nats; weights w_c: tags alike, a tag's captions by their images, as the strict score has them):

- ``kl``: a lower bound of Σ_c w_c KL(q_c ‖ p_c). Right or wrong is counted by caption (`optimum.bernoulli_kl`). Within
  the right images and within the wrong ones it is the least divergence of any distribution with the model's marginals
  (`marginals.least_divergence`); there the teacher's images of a caption weigh as much as the model's, so that a change
  of which captions come out right is not counted again. A few of a teacher's images bound what it can be
  (`marginals`): ``at_bound`` is the share of the model's images of tags in which it is there, so that the truth may be
  far more.
- ``optimum``: what the reward-tilted teacher costs at the model's reward, and its ``beta``.
- ``excess``: kl - optimum, at least 0 but for the noise: a lower bound of KL(q ‖ p̃).

**Bias.** Right or wrong: the estimators of `optimum` have next to none. The marginals' plug-in figure is too large, by
about F (1/N + 1/M) / 2 for F free statistics of N and M images; `marginals` says by how much, and it is taken off.
Corrected figures may fall below 0.

**Intervals**, as in `intervals`: ``ci95`` resamples the images of each caption, the model's and the teacher's (other
noise, same captions), ``ci95_prompts`` also the captions of each tag (a tag of one caption: its images only). They are
1.96 bootstrap standard deviations. Close to 0 a divergence is a square of noise, and a
resampled sample is the noise twice: what that adds to the variance is known and taken off, but half at most. Of 100
intervals of kl and excess about 95 hold the figure, at 150 as at 300 images per tag; fewer where a model keeps to what
only few of the teacher's images show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rtdmd.common.errors import UserError
from rtdmd.common.rng import Key, numpy_generator
from rtdmd.common.sums import sum_in_order
from rtdmd.evaluate.intervals import estimate
from rtdmd.evaluate.marginals import KINDS, Bound, Stratum, least_divergence, of_kind, statistics
from rtdmd.evaluate.optimum import Optimum, bernoulli_kl, optimum
from rtdmd.evaluate.parses import Parses

REPLICATES = 200
KIND_REPLICATES = 50  # of a figure without interval, for its bias
Z95 = 1.959964
DIGITS = 6
SIDES = {"within_right": True, "within_wrong": False}


@dataclass(frozen=True)
class Sample:
    """Images of C captions: the sample itself, then R replicates of a bootstrap.

    caption: (N,) each image's caption, 0 to C - 1; counts: (1 + R, N) how often an image was drawn; right: (1 + R, C)
    right ones; images: (C,) of each caption, the same in every replicate.
    """

    parses: Parses
    caption: np.ndarray
    counts: np.ndarray
    right: np.ndarray
    images: np.ndarray


def caption_weights(parses: Parses) -> dict[int, float]:
    """The weight of each caption (prompt id) in the strict score: tags alike, a tag's captions by their images."""
    tags = np.unique(parses.tags)
    out = {}
    for caption in np.unique(parses.prompts):
        own = parses.prompts == caption
        out[int(caption)] = float(own.sum() / (parses.tags == parses.tags[own][0]).sum() / len(tags))
    return out


def _require_captions(teacher: Parses, weights: Mapping[int, float]) -> None:
    """UserError where the teacher has no image of a caption."""
    missing = sorted(set(weights) - set(teacher.prompts.tolist()))
    if missing:
        raise UserError(
            f"the teacher has no image of prompt {missing[0]}, which a model was judged on: use the same prompts for it"
        )


def teacher_optimum(teacher: Parses, weights: Mapping[int, float]) -> Optimum:
    """The tilted distributions of the teacher behind ``teacher``, for captions of these weights. UserError where it has
    no image of a caption."""
    _require_captions(teacher, weights)
    captions = np.array(sorted(weights))
    images = np.array([(teacher.prompts == caption).sum() for caption in captions])
    right = np.array([teacher.right[teacher.prompts == caption].sum() for caption in captions])
    return optimum(right, images, np.array([weights[int(caption)] for caption in captions]))


def divergence(model: Parses, teacher: Parses, seed: int = 0, replicates: int = REPLICATES) -> dict[str, Any]:
    """The figures of one model (see the module), rounded; ``teacher``: images of other noise than the model's.

    UserError where the teacher lacks a caption, ValueError with fewer than three replicates.
    """
    if replicates < 3:
        raise ValueError(f"a bootstrap needs three replicates at least, not {replicates}")
    weights = caption_weights(model)
    _require_captions(teacher, weights)
    images = _figures(model, teacher, weights, _Draw((seed, "images"), replicates, False))
    captions = _figures(model, teacher, weights, _Draw((seed, "captions"), replicates, True))
    strict = estimate(model.right.astype(np.float64), model.prompts.tolist(), model.tags.tolist())
    out: dict[str, Any] = {"reward": strict.as_dict(), "beta": round(images["beta"].value, DIGITS)}
    for name in ("kl", "optimum", "excess", "right_or_wrong", *SIDES):
        found = images[name]
        out[name] = {
            "mean": round(found.value - found.bias, DIGITS),
            "ci95": round(_half_width(found), DIGITS),
            "ci95_prompts": round(_half_width(captions[name]), DIGITS),
        }
    out["at_bound"] = round(images["kl"].at_bound, DIGITS)
    return out


def by_kind(model: Parses, teacher: Parses, seed: int = 0, replicates: int = KIND_REPLICATES) -> dict[str, float]:
    """What a model's backgrounds alone cost, its numbers of objects alone, and so on (KINDS, nats): the same bound with
    the statistics of one kind, right and wrong images together. Kinds depend on each other, so they do not add up.

    UserError where the teacher lacks a caption.
    """
    weights = caption_weights(model)
    _require_captions(teacher, weights)
    samples = _samples(model, teacher, weights, _Draw((seed, "kinds"), replicates, False))
    sides = [_strata(*samples, right) for right in SIDES.values()]
    out = {}
    for kind in KINDS:
        found = _sum([least_divergence(of_kind(strata, kind), replicates) for strata in sides])
        out[kind] = round(found.value - found.bias, DIGITS)
    return out


def _half_width(found: Bound) -> float:
    """Of the 95 % interval."""
    variance = float(found.replicates.var(ddof=1))
    return Z95 * float(np.sqrt(max(variance - found.surplus, variance / 2)))


@dataclass(frozen=True)
class _Draw:
    """What to resample: the key of its random numbers, how often, and whether captions too."""

    key: tuple[Key, ...]
    replicates: int
    captions: bool


def _samples(
    model: Parses, teacher: Parses, weights: Mapping[int, float], draw: _Draw
) -> tuple[Sample, Sample, np.ndarray, np.ndarray]:
    """The model's images and the teacher's, the captions' weights (1 + R, C) and tags (C,)."""
    ids = np.array(sorted(weights))
    tags = np.array([model.tags[model.prompts == caption][0] for caption in ids])
    own = _sample(model, ids, (*draw.key, "model"), draw.replicates)
    distribution = _sample(teacher.rows(np.isin(teacher.prompts, ids)), ids, (*draw.key, "teacher"), draw.replicates)
    weight = _caption_draws(np.array([weights[int(caption)] for caption in ids]), tags, draw)
    return own, distribution, weight, tags


def _figures(model: Parses, teacher: Parses, weights: Mapping[int, float], draw: _Draw) -> dict[str, Bound]:
    """Every figure of the sample with its bias, and in R replicates."""
    own, distribution, weight, tags = _samples(model, teacher, weights, draw)
    best = optimum(distribution.right, distribution.images, weight)
    reward = (weight * own.right / own.images).sum(1)
    beta = best.beta_at(reward)
    surplus = float((weight[0] ** 2 * _noise(own, distribution) ** 2).sum())
    out = {
        "beta": _plain(beta),
        "right_or_wrong": _plain(
            (weight * bernoulli_kl(own.right, own.images, distribution.right, distribution.images)).sum(1), surplus
        ),
        "optimum": _plain(beta * reward - (weight * best.log_partition(beta)).sum(1)),
    }
    for name, right in SIDES.items():
        out[name] = least_divergence(_strata(own, distribution, weight, tags, right), draw.replicates)
    out["kl"] = _sum([out["right_or_wrong"], out["within_right"], out["within_wrong"]])
    minus = Bound(-out["optimum"].value, 0.0, -out["optimum"].replicates, 0.0)
    out["excess"] = _sum([out["kl"], minus])
    return out


def _plain(values: np.ndarray, surplus: float = 0.0) -> Bound:
    """A figure without bias, from (1 + R,)."""
    return Bound(float(values[0]), 0.0, values[1:], surplus)


def _sum(parts: Sequence[Bound]) -> Bound:
    """Figures of the same replicates added up."""
    replicates = np.sum([part.replicates for part in parts], axis=0)
    totals = {
        name: sum_in_order(getattr(part, name) for part in parts) for name in ("value", "bias", "surplus", "at_bound")
    }
    return Bound(replicates=replicates, **totals)


def _noise(own: Sample, distribution: Sample) -> np.ndarray:
    """(C,) the variance of a caption's share of right images less the tilted teacher's, in units of one image's own
    q (1 - q): 1 / n + q (1 - q) / (m p (1 - p)), with half an image of each kind added so that no share is 0."""
    spread = []
    for sample in (own, distribution):
        share = (sample.right[0] + 0.5) / (sample.images + 1)
        spread.append(share * (1 - share))
    return 1 / own.images + spread[0] / (spread[1] * distribution.images)


def _sample(parses: Parses, ids: np.ndarray, key: tuple[Key, ...], replicates: int) -> Sample:
    """Images with their bootstrap: n - 1 of each caption's n are drawn with replacement and count n / (n - 1) each,
    which gives a mean its unbiased variance however few they are (Rao and Wu 1988). A single image stays."""
    caption = np.searchsorted(ids, parses.prompts)
    counts = np.ones((1 + replicates, len(parses)))
    for c in range(len(ids)):
        own = np.flatnonzero(caption == c)
        size = len(own)
        if size > 1:
            rng = numpy_generator(*key, int(ids[c]))
            counts[1:, own] = rng.multinomial(size - 1, np.full(size, 1 / size), replicates) * size / (size - 1)
    member = caption[:, None] == np.arange(len(ids))
    right = counts @ (member & parses.right[:, None]).astype(np.float64)
    return Sample(parses, caption, counts, right, member.sum(0))


def _caption_draws(weight: np.ndarray, tags: np.ndarray, draw: _Draw) -> np.ndarray:
    """(1 + R, C) the captions' weights, in replicates times how often each was drawn where captions are."""
    out = np.repeat(weight[None], 1 + draw.replicates, axis=0)
    if not draw.captions:
        return out
    for tag in np.unique(tags):
        own = np.flatnonzero(tags == tag)
        rng = numpy_generator(*draw.key, "tag", str(tag))
        drawn = rng.multinomial(len(own), weight[own] / weight[own].sum(), size=draw.replicates)
        out[1:, own] = drawn * weight[own].sum() / len(own)
    return out


def _strata(own: Sample, distribution: Sample, weight: np.ndarray, tags: np.ndarray, right: bool) -> list[Stratum]:
    """The tags' images on one side, the teacher's weighted by caption as the model's; of captions that have images of
    both there."""
    model_here = own.parses.right == right
    distribution_here = distribution.parses.right == right
    counts = []  # (R, C) images of each caption among those that are on this side
    for sample, here in ((own, model_here), (distribution, distribution_here)):
        member = sample.caption[:, None] == np.arange(len(sample.images))
        counts.append(sample.counts @ (member & here[:, None]).astype(np.float64))
    both = (counts[0][0] > 0) & (counts[1][0] > 0)
    used = both & (counts[0] > 0) & (counts[1] > 0)  # (R, C); a replicate may lack what the sample has
    share = np.where(used, weight * counts[0] / own.images, 0.0)
    per_model = np.where(used, weight / own.images, 0.0)
    per_distribution = np.where(used, share / np.maximum(counts[1], 1), 0.0)
    out = []
    for tag in np.unique(tags):
        usable = both & (tags == tag)
        rows = np.flatnonzero(model_here & usable[own.caption])
        distribution_rows = np.flatnonzero(distribution_here & usable[distribution.caption])
        if len(rows) > 0:
            out.append(
                Stratum(
                    statistics(own.parses.rows(rows)),
                    statistics(distribution.parses.rows(distribution_rows)),
                    own.counts[:, rows] * per_model[:, own.caption[rows]],
                    distribution.counts[:, distribution_rows]
                    * per_distribution[:, distribution.caption[distribution_rows]],
                )
            )
    return out
