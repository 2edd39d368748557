"""Intervals against textbook formulas and their coverage in repeated draws."""

import numpy as np
import pytest
from scipy import stats

from rtdmd.evaluate.intervals import estimate


def test_one_tag_is_the_students_t_interval():
    x = [0.2, 0.9, 1.0, 1.0, 0.1, 0.8, 1.0, 1.0]
    got = estimate(x, list(range(8)), ["a"] * 8)
    low, high = stats.t.interval(0.95, 7, loc=0.75, scale=stats.sem(x))
    assert got.mean == pytest.approx(0.75)
    assert got.ci95 == pytest.approx((high - low) / 2, rel=1e-12)
    assert got.ci95_prompts == pytest.approx(got.ci95)  # one image per prompt: the two intervals are one


def test_binary_scores_give_the_binomial_width():
    x = np.r_[np.ones(846), np.zeros(54)]  # 0.94 on 900
    got = estimate(x, np.arange(900).tolist(), ["a"] * 900)
    assert got.ci95 == pytest.approx(1.96 * np.sqrt(0.94 * 0.06 / 900), rel=2e-2)


def test_a_perfect_score_is_not_shown_as_certain():
    """150 of 150: the exact 95 % bound is 0.976 (Clopper and Pearson), and the half-width reaches about as far."""
    got = estimate([1.0] * 150, [0] * 150, ["a"] * 150)
    assert got.mean == 1.0
    assert got.ci95 == pytest.approx(1 - stats.beta.ppf(0.025, 150, 1), abs=0.007)


def test_tags_weigh_alike_whatever_their_size():
    got = estimate([1.0, 1.0, 1.0, 0.0, 0.5], [1, 2, 3, 4, 5], ["a", "a", "a", "b", "b"])
    assert got.mean == pytest.approx((1.0 + 0.25) / 2)
    assert got.n == 5


def test_images_of_a_prompt_that_agree_are_no_new_evidence_about_prompts():
    x = np.repeat([0.0, 1.0, 1.0, 0.0], 25) + 0.5
    got = estimate(x, np.repeat(np.arange(4), 25).tolist(), ["a"] * 100)
    assert got.ci95 == pytest.approx(stats.t.ppf(0.975, 99) * 0.5 / np.sqrt(99), rel=1e-9)
    assert got.ci95_prompts == pytest.approx(stats.t.ppf(0.975, 3) * np.sqrt(1 / 3) / 2, rel=1e-9)


def test_one_image_has_no_interval():
    assert estimate([0.3], [0], ["a"]).as_dict() == {"mean": 0.3, "ci95": None, "ci95_prompts": None}


def test_prompt_interval_covers_when_prompts_differ():
    """600 experiments of 3 tags x 8 prompts x 10 images with true mean 0.6: about 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(24), 10)
    tags = np.repeat(["a", "b", "c"], 80).tolist()
    hits = {"prompts": 0, "images": 0}
    for _ in range(600):
        ability = rng.beta(3, 2, size=24)[prompts]
        got = estimate((rng.random(240) < ability).astype(float), prompts.tolist(), tags)
        hits["prompts"] += abs(got.mean - 0.6) <= got.ci95_prompts
        hits["images"] += abs(got.mean - 0.6) <= got.ci95
    assert 0.92 < hits["prompts"] / 600 < 0.98
    assert hits["images"] / 600 < 0.90  # too narrow for a claim about other prompts, as documented


@pytest.mark.parametrize(("values", "prompts"), [([], []), ([1.0], [1, 2]), ([float("nan")], [1])])
def test_bad_input_is_an_error(values, prompts):
    with pytest.raises(ValueError):
        estimate(values, prompts, ["a"] * len(values))
