"""The least divergence of a distribution with the model's marginals, on samples whose figure is known."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rtdmd.evaluate.marginals import NAMED_COLORS, Bound, Stratum, least_divergence, statistics
from rtdmd.evaluate.parses import Parses


def records(tag: str, *pictures: tuple[int, dict[int, tuple[int, int, int]]]) -> Parses:
    """Records of pictures: a background, and cell -> (shape, color, size); a shape of -1 is clutter."""
    cells = {name: np.zeros((len(pictures), 9), dtype=np.int64) for name in ("state", "shape", "color", "size")}
    for i, (_, objects) in enumerate(pictures):
        for cell, (shape, color, size) in objects.items():
            cells["state"][i, cell] = -1 if shape < 0 else 1
            if shape >= 0:
                for name, value in (("shape", shape), ("color", color), ("size", size)):
                    cells[name][i, cell] = value
    count = len(pictures)
    return Parses(
        prompts=np.zeros(count, dtype=np.int64),
        indices=np.arange(count),
        tags=np.array([tag] * count),
        right=np.ones(count, dtype=bool),
        background=np.array([background for background, _ in pictures]),
        **cells,
    )


def bound(model: np.ndarray, teacher: np.ndarray, mass: float = 1.0) -> Bound:
    """Of one stratum of equal weights, with three replicates like the sample."""
    weights = [np.full((4, len(g)), mass / len(g)) for g in (model, teacher)]
    return least_divergence([Stratum(model, teacher, weights[0], weights[1])], 3)


def test_the_statistics_of_two_pictures() -> None:
    pictures = (0, {0: (0, 2, 9), 8: (3, 3, 10), 4: (-1, 0, 0)}), (2, {1: (1, 0, 9), 2: (1, 1, 9)})
    free = statistics(records("counting", *pictures))
    assert free[0].tolist() == [1, 0, *(0, 0, 1, 0, 0), 1, 1, 0, 0, *(0, 0, 0, 0, 0, 1), 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert free[1].tolist() == [0, 0, *(0, 0, 1, 0, 0), 0, 0, 2, 0, *(0, 1, 0, 1, 0, 0), 0, 1, 1, 0, 0, 0, 0, 0, 2]
    named = statistics(records("colors", *pictures))
    assert named[1, 11:17].tolist() == [1, 0, 1, 0, 0, 0]
    assert np.delete(named, np.s_[11:17], axis=1).tolist() == np.delete(free, np.s_[11:17], axis=1).tolist()
    assert {"colors", "color_attr"} == NAMED_COLORS


def most(images: int) -> float:
    """What so many images of a teacher can show at most: (M + 1) / M log (M + 1)."""
    return (images + 1) / images * np.log(images + 1)


def test_a_collapsed_background_costs_the_logarithm_of_three() -> None:
    teacher = statistics(records("counting", *[(level, {0: (0, 0, 9)}) for level in range(3)] * 1600))
    model = statistics(records("counting", *[(1, {0: (0, 0, 9)})] * 2000))
    found = bound(model, teacher, mass=0.25)
    assert found.value == pytest.approx(0.25 * np.log(3), abs=1e-3)
    assert found.at_bound == 0
    assert found.replicates.tolist() == pytest.approx([found.value] * 3)


def test_every_object_of_an_image_counts() -> None:
    """All sizes of one to three objects alike; the model draws small ones only: log 2 for each object."""
    teacher = [
        (0, {cell: (0, 0, size) for cell, size in enumerate(sizes)})
        for count in (1, 2, 3)
        for sizes in list(product((9, 10), repeat=count)) * (2000 // 2**count)
    ]
    model = [(0, dict.fromkeys(range(count), (0, 0, 9))) for count in (1, 2, 3)] * 600
    found = bound(statistics(records("counting", *model)), statistics(records("counting", *teacher)))
    assert found.value == pytest.approx(2 * np.log(2), abs=0.01)


def test_dependent_marginals_are_not_counted_twice() -> None:
    """Background and shape are one coin in the teacher: log 2, where the marginals' sum would be 2 log 2."""
    teacher = [(0, {0: (0, 0, 9)}), (1, {0: (1, 0, 9)})] * 1500
    model = [(0, {0: (0, 0, 9)})] * 1000
    found = bound(statistics(records("counting", *model)), statistics(records("counting", *teacher)))
    assert found.value == pytest.approx(np.log(2), abs=2e-3)


def test_a_tilt_of_the_teacher_gets_its_own_divergence() -> None:
    """A model that weighs the teacher's images by exp(0.8 [background 0] - 0.5 small objects): Σ q log q / p."""
    rng = np.random.default_rng(0)
    pictures = [
        (int(rng.integers(3)), {cell: (0, int(rng.integers(4)), int(rng.integers(9, 11))) for cell in range(3)})
        for _ in range(200)
    ]
    g = statistics(records("counting", *pictures))
    q = np.exp(0.8 * g[:, 0] - 0.5 * g[:, -1])
    q /= q.sum()
    many = np.tile(g, (50, 1))  # so that what one image more takes is little
    weights = [np.tile(w, (4, 50)) / 50 for w in (q, np.full(200, 1 / 200))]
    found = least_divergence([Stratum(many, many, weights[0], weights[1])], 3)
    assert found.value == pytest.approx(float((q * np.log(200 * q)).sum()), abs=1e-4)


def test_tags_keep_their_own_normaliser() -> None:
    """Two tags whose teachers differ, and models that do as theirs: no divergence, whatever the tags weigh."""
    dark, bright = (0, {0: (0, 0, 9)}), (1, {0: (0, 0, 9)})
    strata = []
    for pictures, mass in (([dark, bright], 0.2), ([dark, bright, bright], 0.8)):
        g = statistics(records("counting", *pictures * 20))
        weights = np.full((4, len(g)), mass / len(g))
        strata.append(Stratum(g, g, weights, weights))
    assert least_divergence(strata, 3).value == pytest.approx(0, abs=1e-12)


def test_what_the_teacher_never_drew_costs_what_its_images_can_show() -> None:
    """However unlike: the logarithm of one image more than the teacher's, and it is told that this is a bound."""
    teacher = statistics(records("counting", *[(0, {0: (0, 0, 9)})] * 30))
    model = statistics(records("counting", *[(1, {0: (1, 2, 10), 3: (0, 0, 9)})] * 40))
    found = bound(model, teacher, mass=0.1)
    assert found.value == pytest.approx(0.1 * most(30), rel=0.01) and found.value < 0.1 * most(30)
    assert found.at_bound == pytest.approx(0.1)


@pytest.mark.parametrize("size", [2, 5, 20])
def test_a_few_images_show_no_more_than_their_number(size: int) -> None:
    """Twenty images have a tilt of thirty statistics for any mean; here the teacher's have other sizes altogether."""
    rng = np.random.default_rng(0)
    samples = [[(0, dict.fromkeys(rng.permutation(9)[:3], (0, 0, kind))) for _ in range(size)] for kind in (9, 10)]
    model, teacher = (statistics(records("counting", *pictures)) for pictures in samples)
    found = bound(model, teacher)
    assert 0.8 * most(size) < found.value < most(size)
    assert found.at_bound == pytest.approx(1)


def test_nothing_is_far_from_nothing() -> None:
    teacher = statistics(records("counting", *[(0, {0: (0, 0, 9)})] * 30))
    assert bound(teacher[:5], teacher).value == 0.0
    assert least_divergence([], 5).replicates.tolist() == [0.0] * 5


def test_the_bias_is_that_of_millers_and_madows_for_two_samples() -> None:
    """Equal distributions of three backgrounds: two free shares, so (3 - 1) (1/N + 1/M) / 2 too large in expectation.
    Corrected, noise is left, and the variance without its surplus is the figure's own."""
    rng = np.random.default_rng(0)
    n, m = 60, 90
    values, corrected, variances = [], [], []
    for _ in range(150):
        g = [
            statistics(records("counting", *[(int(level), {0: (0, 0, 9)}) for level in rng.integers(3, size=size)]))
            for size in (n, m)
        ]
        counts = [
            np.concatenate([np.ones((1, size)), rng.multinomial(size, np.full(size, 1 / size), size=60)]) / size
            for size in (n, m)
        ]
        found = least_divergence([Stratum(g[0], g[1], counts[0], counts[1])], 60)
        values.append(found.value)
        corrected.append(found.value - found.bias)
        variances.append(found.replicates.var(ddof=1) - found.surplus)
    wanted = (1 / n + 1 / m) * 2 / 2
    assert np.mean(values) == pytest.approx(wanted, rel=0.2)
    assert abs(np.mean(corrected)) < 0.2 * wanted
    assert np.mean(variances) == pytest.approx(np.var(values), rel=0.35)
