"""What a score alone tells of the verdict: against hand counts, a distribution that is known, and scipy's statistic."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from rtdmd.evaluate.plan import Item
from rtdmd.evaluate.ranking import auc, ranking
from rtdmd.evaluate.tables import scores_of
from rtdmd.prompts.records import Prompt


def test_pairs_are_of_one_caption_and_ties_count_half() -> None:
    """Caption 0: 3 over 1 and 2, 2 over 1 and level with 2: 3.5 of 4. Caption 1: 9 under 10: 0 of 1. Caption 2 has no
    wrong image."""
    values = np.array([3.0, 2.0, 1.0, 2.0, 9.0, 10.0, 0.0])
    right = np.array([True, True, False, False, True, False, True])
    captions = np.array([0, 0, 0, 0, 1, 1, 2])
    found = auc(values, right, captions)
    assert found is not None and (found["mean"], found["pairs"]) == (0.7, 5)
    # sums of an image's (share - 0.7): 2 - 1.4 and 1.5 - 1.4 of the right ones, 2 - 1.4 and 1.5 - 1.4 of the wrong
    # ones, and -0.7 twice of caption 1
    squares = 2 * (0.6**2 + 0.1**2) + 2 * 0.7**2
    assert found["ci95"] == pytest.approx(1.959964 * squares**0.5 / 5, abs=1e-6)


def test_without_a_pair_there_is_nothing_to_tell() -> None:
    assert auc(np.arange(3.0), np.ones(3, dtype=bool), np.zeros(3)) is None
    assert auc(np.arange(2.0), np.array([True, False]), np.array([0, 1])) is None


def test_it_is_scipys_statistic_within_a_caption() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=60).round(1)
    right = rng.random(60) < 0.4
    found = auc(values, right, np.zeros(60))
    whole = mannwhitneyu(values[right], values[~right]).statistic / (right.sum() * (~right).sum())
    assert found is not None and found["mean"] == pytest.approx(whole, abs=1e-6)


def test_a_caption_that_scores_higher_tells_nothing() -> None:
    """Right images are of caption 0, whose scores are all higher: pooled the score would seem to know."""
    rng = np.random.default_rng(1)
    captions = np.repeat([0, 1], 400)
    right = rng.random(800) < np.where(captions == 0, 0.9, 0.1)
    values = rng.normal(size=800) + 10 * (captions == 0)
    found = auc(values, right, captions)
    assert found is not None and abs(found["mean"] - 0.5) < found["ci95"] < 0.1


def test_the_interval_holds_the_share_of_two_normal_laws_about_as_often_as_it_says() -> None:
    """Right images score N(1, 1), wrong ones N(0, 1): the share is Φ(1 / √2)."""
    rng = np.random.default_rng(2)
    truth = float(norm.cdf(1 / np.sqrt(2)))
    captions = np.repeat(np.arange(6), 25)
    held = 0
    for _ in range(200):
        right = rng.random(150) < 0.6
        found = auc(rng.normal(size=150) + right, right, captions)
        assert found is not None
        held += abs(found["mean"] - truth) <= found["ci95"]
    assert 180 <= held <= 198


def test_a_score_is_ranked_by_tag_and_the_verifiers_own_are_not() -> None:
    prompts = [Prompt(0, "a", "colors", None), Prompt(1, "b", "position", None)]
    items = [Item(prompt, index) for prompt in prompts for index in range(2)]
    columns = {"strict": [1, 0, 1, 1], "soft": [1, 0, 1, 1], "clipscore": [0.2, 0.1, 0.5, 0.3]}
    scores = scores_of(items, {name: np.array(values, dtype=float) for name, values in columns.items()})
    assert ranking(scores) == {"clipscore": {"colors": {"mean": 1.0, "ci95": 0.0, "pairs": 1}, "position": None}}
    assert ranking(scores_of(items, {"clipscore": np.zeros(4)})) == {}
