"""Diversity figures on sets whose diversity is known."""

import numpy as np
import pytest

from rtdmd.evaluate.diversity import entropy, pairwise_diversity


def test_a_collapsed_set_has_no_diversity():
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(5, 16)), 8, axis=0)  # every prompt always gives its one image
    assert pairwise_diversity(features, np.repeat(np.arange(5), 8).tolist()) == 0.0


def test_diversity_is_the_mean_distance_within_prompts_only():
    features = np.array([[0.0, 0.0], [3.0, 4.0], [100.0, 0.0], [100.0, 1.0], [7.0, 7.0]])
    assert pairwise_diversity(features, [0, 0, 1, 1, 2]) == pytest.approx((5.0 + 1.0) / 2)


def test_gaussian_features_have_the_known_mean_distance():
    x = np.random.default_rng(1).normal(size=(3000, 2))  # distance of two points: Rayleigh with scale sqrt 2
    assert pairwise_diversity(x, [0] * 3000) == pytest.approx(np.sqrt(2) * np.sqrt(np.pi / 2), rel=0.02)


def test_one_image_a_prompt_says_nothing():
    assert pairwise_diversity(np.zeros((3, 2)), [0, 1, 2]) is None


@pytest.mark.parametrize(
    ("labels", "categories", "value"),
    [([0, 1, 2, 3], 4, 1.0), ([2, 2, 2], 4, 0.0), ([0, 0, 1, 1], 4, 0.5), ([0, 0, 0, 1], 2, 0.8112781244591328)],
)
def test_entropy_is_relative_to_uniform(labels, categories, value):
    assert entropy(labels, categories) == pytest.approx(value)


def test_entropy_of_nothing_is_none():
    assert entropy([], 4) is None
