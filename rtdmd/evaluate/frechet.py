"""Frechet distance between two sets of feature vectors, each taken as a Gaussian (Dowson and Landau 1982; FID of
Heusel et al. 2017)."""

from __future__ import annotations

import numpy as np


def symmetric_sqrt(matrix: np.ndarray) -> np.ndarray:
    """Square root of a symmetric positive semi-definite (D, D) matrix; eigenvalues that are round-off (below D times
    the machine epsilon of the largest) count as 0, or their roots would be 1e-8 of it."""
    values, vectors = np.linalg.eigh(matrix)
    noise = len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return (vectors * np.sqrt(np.where(values > noise, values, 0.0))) @ vectors.T


def gaussian_frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2): squared 2-Wasserstein distance of two Gaussians.

    Means (D,), covariances (D, D), float64. The last trace is the sum of the singular values of C_a^1/2 C_b^1/2: no
    root of a difference is taken, so nothing turns complex and the two arguments may change places.
    """
    cross = np.linalg.svd(symmetric_sqrt(cov_a) @ symmetric_sqrt(cov_b), compute_uv=False).sum()
    trace = np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross
    return float(((mean_a - mean_b) ** 2).sum() + max(trace, 0.0))


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Frechet distance between feature sets (N, D) and (M, D), the second one's weighted by ``weights`` (M,); biased
    upwards by about tr(C) (1/N + 1/M), so compare equal N.

    With weights its covariance is the unbiased one for these, and M is (Σ v)² / Σ v² images in effect.

    Errors: ValueError with fewer than two vectors in a set or a feature that is not finite.
    """
    a = np.asarray(features_a, dtype=np.float64)
    b = np.asarray(features_b, dtype=np.float64)
    if len(a) < 2 or len(b) < 2:
        raise ValueError(
            f"a Frechet distance needs at least two feature vectors on each side, not {len(a)} and {len(b)}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features hold a number that is not finite")
    mean_b = np.average(b, axis=0, weights=weights)
    cov_b = np.atleast_2d(np.cov(b.T, aweights=weights))
    return gaussian_frechet(a.mean(0), np.atleast_2d(np.cov(a.T)), mean_b, cov_b)
