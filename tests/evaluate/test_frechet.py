"""Frechet distance against closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from rtdmd.evaluate.frechet import frechet_distance, gaussian_frechet, symmetric_sqrt


def _spd(rng, d):
    a = rng.normal(size=(d, d))
    return a @ a.T + 0.1 * np.eye(d)


def test_commuting_covariances_have_the_elementary_form():
    """Diagonal Gaussians: |m1 - m2|^2 + sum (s1 - s2)^2."""
    m1, m2, s1, s2 = np.array([0.0, 1.0]), np.array([3.0, 5.0]), np.array([1.0, 2.0]), np.array([0.5, 4.0])
    got = gaussian_frechet(m1, np.diag(s1**2), m2, np.diag(s2**2))
    assert got == pytest.approx(9 + 16 + 0.25 + 4, abs=1e-12)


def test_general_covariances_match_the_matrix_square_root():
    rng = np.random.default_rng(1)
    a, b = _spd(rng, 7), _spd(rng, 7)
    expected = np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert gaussian_frechet(np.zeros(7), a, np.zeros(7), b) == pytest.approx(expected, rel=1e-10)
    assert symmetric_sqrt(a) @ symmetric_sqrt(a) == pytest.approx(a)


def test_samples_approach_the_distance_of_their_gaussians():
    rng = np.random.default_rng(2)
    cov = _spd(rng, 3)
    x = rng.multivariate_normal(np.zeros(3), cov, size=40000)
    y = rng.multivariate_normal(np.ones(3), 4 * cov, size=40000)
    assert frechet_distance(x, y) == pytest.approx(3 + np.trace(cov), rel=0.03)  # (2 - 1)^2 tr(cov)


def test_distance_is_symmetric_and_zero_to_itself_even_when_degenerate():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 4)) * np.array([1.0, 1.0, 0.0, 0.0])
    y = rng.normal(size=(60, 4))
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)


def test_bad_features_are_an_error():
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(np.full((3, 3), np.nan), np.zeros((5, 3)))
