"""The known optimum of a 0/1 reward: the teacher's own images, the right ones reweighted.

For caption c the teacher's images are right with probability p_c. Among all distributions of mean reward ρ the one
closest to the teacher is p̃ ∝ p exp(β r) with one β for all captions: it draws right images with probability
ρ_c(β) = p_c e^β / (1 - p_c + p_c e^β), and leaves the right ones and the wrong ones among themselves as they are. It
costs

    KL(β) = Σ_c w_c KL(Bernoulli ρ_c(β) ‖ Bernoulli p_c) = β ρ(β) - Σ_c w_c A_c(β),    A_c(β) = log(1 - p_c + p_c e^β),

and by Pythagoras' identity for such projections (Csiszár 1975) a model q of reward ρ(β) has
KL(q ‖ p) = KL(β) + KL(q ‖ p̃): what it costs above the optimum is its own distance from p̃.

p_c is known from few images (a caption may have a dozen), and A_c is curved, so counts are not simply put in its place.
Its power series in 1 - p_c (in p_c for β < 0) is, with a = 1 - e^-|β| and l right ones of m images,

    A_c(β) = β - Σ_k a^k (1 - p_c)^k / k,    (1 - p_c)^k estimated by (m-l)(m-l-1)... / m(m-1)...  (k factors),

where every estimated power is unbiased and the series ends at k = m: what is left out falls like (1 - p_c)^m. At β -> ∞
it is the estimate of -log p_c that Zhang and Grabchak (Neural Computation 26, 2014) use for the divergence of two
samples, which `bernoulli_kl` is for two categories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BETA_LIMIT = 40.0  # where a reward of 0 or 1 is reached to all digits


def bernoulli_kl(
    right: np.ndarray, images: np.ndarray, teacher_right: np.ndarray, teacher_images: np.ndarray
) -> np.ndarray:
    """KL(Bernoulli q ‖ Bernoulli p) from ``right`` (..., C) of ``images`` (C,) draws of q, and as many of p.

    The estimator of Zhang and Grabchak (2014) with one change. -log p = Σ_k (1 - p)^k / k is estimated by its first
    terms, as many as the teacher's m images tell, and -log q likewise from the n - 1 other images. Here both series end
    at K = min(n - 1, m): each ended at its own, the difference of what they leave out would be a bias where q = p (of a
    distribution that is right 98 times in 100, -0.007 with 50 images against 24, +0.019 with 8 against 24). So the bias
    is 0 where q = p, and elsewhere falls exponentially with the images. The figure is finite for any counts and may be
    negative; the two samples must be independent, with an image each at least.
    """
    terms = np.minimum(images - 1, teacher_images)
    k = np.arange(1, max(1, int(terms.max())) + 1)
    series = np.where(k <= terms[..., None], 1 / k, 0.0)
    total = np.zeros(np.broadcast_shapes(np.shape(right), np.shape(teacher_right)))
    sides = ((right, teacher_right), (images - right, teacher_images - teacher_right))
    for count, teacher_count in sides:
        cross = (_powers(teacher_images - teacher_count, teacher_images, len(k)) * series).sum(-1)
        own = (_powers(np.minimum(images - count, images - 1), images - 1, len(k)) * series).sum(-1)
        total = total + count / images * (cross - own)
    return total


def _powers(count: np.ndarray, images: np.ndarray, most: int) -> np.ndarray:
    """(..., C, most) unbiased estimates of the first powers of a share, of which ``images`` (C,) draws had ``count``
    (..., C); of powers beyond the images nothing is known, and 0 said."""
    j = np.arange(most)
    rest = np.maximum(images[..., None] - j, 1)
    return np.cumprod(np.maximum(np.asarray(count)[..., None] - j, 0) / rest, axis=-1)


@dataclass(frozen=True)
class Optimum:
    """The reward-tilted distributions of a teacher, estimated from its images: ``weights`` (C,) of the captions, which
    sum to 1, and unbiased estimates (..., C, K) of the powers 1 to K of p_c (``hit``) and of 1 - p_c (``miss``)."""

    weights: np.ndarray
    hit: np.ndarray
    miss: np.ndarray

    def log_partition(self, beta: np.ndarray | float) -> np.ndarray:
        """A_c(β), (..., C), for β (...)."""
        beta = np.asarray(beta, dtype=np.float64)
        k = np.arange(1, self.hit.shape[-1] + 1)
        powers = (1 - np.exp(-np.abs(beta)))[..., None] ** k / k
        up = beta[..., None] - (self.miss @ powers[..., None])[..., 0]
        down = -(self.hit @ powers[..., None])[..., 0]
        return np.where(beta[..., None] >= 0, up, down)

    def rewards(self, beta: np.ndarray | float) -> np.ndarray:
        """ρ_c(β) = dA_c/dβ, (..., C)."""
        beta = np.asarray(beta, dtype=np.float64)
        k = np.arange(self.hit.shape[-1])
        falls = np.exp(-np.abs(beta))[..., None]
        powers = (1 - falls) ** k * falls
        up = 1 - (self.miss @ powers[..., None])[..., 0]
        down = (self.hit @ powers[..., None])[..., 0]
        return np.where(beta[..., None] >= 0, up, down)

    def reward(self, beta: np.ndarray | float) -> np.ndarray:
        """The mean reward ρ(β), (...)."""
        return (self.weights * self.rewards(beta)).sum(-1)

    def kl(self, beta: np.ndarray | float) -> np.ndarray:
        """What the tilted distribution costs, KL(p̃ ‖ p) in nats, (...)."""
        return beta * self.reward(beta) - (self.weights * self.log_partition(beta)).sum(-1)

    def beta_at(self, reward: np.ndarray | float) -> np.ndarray:
        """The β of a mean reward, (...), by bisection; ±BETA_LIMIT where no smaller one reaches it (reward 0 or 1)."""
        low = np.full(np.shape(reward), -BETA_LIMIT)
        high = np.full(np.shape(reward), BETA_LIMIT)
        for _ in range(34):  # to 5e-9
            middle = (low + high) / 2
            above = self.reward(middle) >= reward
            high = np.where(above, middle, high)
            low = np.where(above, low, middle)
        return (low + high) / 2


def optimum(right: np.ndarray, images: np.ndarray, weights: np.ndarray) -> Optimum:
    """The tilted distributions of a teacher with ``right`` (..., C) of ``images`` (C,) right, the captions weighing
    ``weights`` (..., C). ValueError where a caption has no image or the weights do not sum to 1.
    """
    if (images < 1).any() or not np.allclose(weights.sum(-1), 1):
        raise ValueError("every caption needs an image of the teacher, and the weights must sum to 1")
    most = int(images.max())
    return Optimum(weights, _powers(right, images, most), _powers(images - right, images, most))


def tilted_weights(right: np.ndarray, captions: np.ndarray, beta: float) -> np.ndarray:
    """Weights (N,) of a teacher's images (``right`` bool, of ``captions``) that make them a sample of p̃: exp(β r),
    normalised within each caption to the weight that its images have together, N in all."""
    raw = np.exp(beta * (right.astype(np.float64) - (beta > 0)))  # at most 1
    out = np.empty(len(raw))
    for caption in np.unique(captions):
        own = captions == caption
        out[own] = raw[own] * own.sum() / raw[own].sum()
    return out
