"""The verifier on hand-made images of every tag, and on the world's own images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.rng import normal, numpy_generator
from rtdmd.world.grammar import COLORS, SHAPES, TAGS, captions
from rtdmd.world.render import PLACEMENTS, Scenes, render, sample_scenes
from rtdmd.world.verifier import Verdict, parse, verify

Object = tuple[str, str, int]  # colour, shape, cell (row-major)


def picture(*objects: Object, background: int = 1) -> Tensor:
    """(1, 3, 36, 36): the given objects, 10 pixels each."""
    mask, color = np.zeros((1, 9), dtype=np.int64), np.zeros((1, 9), dtype=np.int64)
    for name, shape, cell in objects:
        mask[0, cell], color[0, cell] = 1 + SHAPES.index(shape) * len(PLACEMENTS), COLORS.index(name)
    return render(Scenes(np.array([background]), mask, color))


def judge(prompt: str, *images: Tensor) -> Verdict:
    """The verdict of images for one of the world's captions."""
    record = next(caption for caption in captions() if caption.prompt == f"a photo of {prompt}").metadata()
    return verify(torch.cat(images), [record] * len(images))


CASES: list[tuple[str, Sequence[Object], int, int]] = [
    # caption, objects, strict, lenient
    ("a circle", [("red", "circle", 0)], 1, 1),
    ("a circle", [("red", "square", 0)], 0, 0),
    ("a circle", [("red", "circle", 0), ("red", "square", 4)], 0, 1),
    ("a circle", [("red", "circle", 0), ("blue", "circle", 4)], 0, 1),
    ("a circle", [], 0, 0),
    ("a circle and a cross", [("red", "circle", 8), ("blue", "cross", 1)], 1, 1),
    ("a circle and a cross", [("red", "circle", 8), ("blue", "circle", 1)], 0, 0),
    ("a circle and a cross", [("red", "circle", 8), ("blue", "cross", 1), ("red", "square", 2)], 0, 1),
    ("three squares", [("red", "square", 0), ("blue", "square", 4), ("green", "square", 5)], 1, 1),
    ("three squares", [("red", "square", 0), ("blue", "square", 4)], 0, 0),
    ("three squares", [("red", "square", cell) for cell in range(4)], 0, 1),
    ("a red circle", [("red", "circle", 3)], 1, 1),
    ("a red circle", [("blue", "circle", 3)], 0, 0),
    ("a red circle", [("red", "square", 3)], 0, 0),
    ("a red circle", [("red", "circle", 3), ("blue", "circle", 4)], 0, 1),
    ("a circle left of a cross", [("red", "circle", 3), ("blue", "cross", 4)], 1, 1),
    ("a circle left of a cross", [("red", "circle", 0), ("blue", "cross", 8)], 1, 1),
    ("a circle left of a cross", [("red", "circle", 4), ("blue", "cross", 3)], 0, 0),
    ("a circle left of a cross", [("red", "circle", 1), ("blue", "cross", 4)], 0, 0),
    ("a circle left of a cross", [("red", "circle", 3), ("blue", "cross", 4), ("red", "square", 0)], 0, 1),
    ("a circle above a cross", [("red", "circle", 1), ("blue", "cross", 4)], 1, 1),
    ("a circle below a cross", [("red", "circle", 1), ("blue", "cross", 4)], 0, 0),
    ("a circle right of a cross", [("red", "circle", 5), ("blue", "cross", 6)], 1, 1),
    ("a red circle and a blue cross", [("red", "circle", 0), ("blue", "cross", 8)], 1, 1),
    ("a red circle and a blue cross", [("blue", "circle", 0), ("red", "cross", 8)], 0, 0),
    ("a red circle and a blue cross", [("red", "circle", 0), ("red", "cross", 8)], 0, 0),
    ("a red circle and a blue cross", [("red", "circle", 0), ("blue", "cross", 8), ("red", "cross", 4)], 0, 1),
]


@pytest.mark.parametrize("background", [0, 1, 2])
def test_strict_and_lenient_on_hand_made_images(background: int) -> None:
    for prompt, objects, strict, lenient in CASES:
        verdict = judge(prompt, picture(*objects, background=background))
        assert (verdict.strict.item(), verdict.lenient.item()) == (strict, lenient), (prompt, objects)
        assert verdict.count.item() == len(objects)
        assert 0 <= verdict.soft.item() <= 1
        assert (verdict.soft.item() > 0.999) == (strict == 1), (prompt, objects)


def test_clutter_fails_strict_and_lowers_soft() -> None:
    clean = picture(("red", "circle", 0))
    cluttered = clean.clone()
    cluttered[0, :, 24:36:2, 24:36:2] = 0.0  # dots that are no shape
    verdict = judge("a red circle", clean, cluttered)
    assert verdict.parse.state[1, 8] == -1
    assert verdict.strict.tolist() == [1, 0] and verdict.lenient.tolist() == [1, 1]
    assert verdict.soft[0] > verdict.soft[1] + 0.2
    assert verdict.count.tolist() == [1, 1]


def test_noise_shows_nothing() -> None:
    noise = (0.5 + 0.5 * normal((40, 3, 36, 36), "noise")).clamp(0, 1)
    records = [caption.metadata() for caption in captions()[::7][:40]]
    verdict = verify(noise, records)
    assert verdict.strict.sum() == 0 and verdict.lenient.sum() == 0
    assert verdict.soft.max() < 0.35


def test_soft_orders_images_by_how_wrong_they_are() -> None:
    right = picture(("red", "circle", 3), ("blue", "cross", 4))
    swapped = picture(("red", "circle", 4), ("blue", "cross", 3))
    one = picture(("red", "circle", 3))
    nothing = picture()
    soft = judge("a circle left of a cross", right, swapped, one, nothing).soft
    assert soft[0].item() == pytest.approx(1.0, abs=1e-4)
    assert (soft[:-1] > soft[1:] + 0.1).all(), soft
    counts = [picture(*[("red", "square", cell) for cell in range(n)]) for n in range(1, 7)]
    soft = judge("three squares", *counts).soft
    assert (soft[:2].diff() > 0.1).all() and soft.argmax() == 2 and (soft[2:].diff() <= 0).all(), soft
    faded = [0.5 + share * (picture(("red", "circle", 3)) - 0.5) for share in (1.0, 0.8, 0.6, 0.4, 0.2)]
    soft = judge("a red circle", *faded).soft
    assert (soft.diff() < 0).all(), soft


def test_a_faint_or_blurred_object_is_still_read_and_a_ghost_is_not() -> None:
    clean = picture(("red", "circle", 3))
    verdict = judge("a red circle", 0.5 + 0.7 * (clean - 0.5), 0.5 + 0.1 * (clean - 0.5))
    assert verdict.strict.tolist() == [1, 0] and verdict.count.tolist() == [1, 0]
    noisy = (clean + 0.05 * normal(tuple(clean.shape), "faint")).clamp(0, 1)
    assert judge("a red circle", noisy).strict.item() == 1


@pytest.fixture(scope="module")
def world() -> tuple[Tensor, list[dict[str, object]]]:
    chosen = [caption for caption in captions() for _ in range(2)]
    return render(sample_scenes(chosen, numpy_generator(0, "verify"))), [caption.metadata() for caption in chosen]


def test_real_images_score_one(world: tuple[Tensor, list[dict[str, object]]]) -> None:
    verdict = verify(*world)
    assert verdict.strict.min() == 1 and verdict.lenient.min() == 1
    assert verdict.soft.min().item() == pytest.approx(1.0, abs=1e-4)
    wanted = [sum(item["count"] for item in record["include"]) for record in world[1]]  # type: ignore[attr-defined]
    assert verdict.count.tolist() == wanted


def test_shuffled_captions_score_little() -> None:
    """As evaluation draws them: 60 images of each tag, captions permuted over all of them."""
    by_tag = {tag: [caption for caption in captions() if caption.tag == tag] for tag in TAGS}
    chosen = [rows[i % len(rows)] for rows in by_tag.values() for i in range(60)]
    rng = numpy_generator(0, "shuffled")
    images, order = render(sample_scenes(chosen, rng)), rng.permutation(len(chosen))
    verdict = verify(images, [chosen[i].metadata() for i in order])
    assert 0.0 < verdict.strict.mean().item() < 0.06
    assert verdict.soft.mean().item() < 0.5


def test_a_verdict_does_not_depend_on_its_batch(world: tuple[Tensor, list[dict[str, object]]]) -> None:
    images, records = world[0][::9], world[1][5:] + world[1][:5]
    records = records[::9]
    whole = verify(images, records)
    for i in range(0, len(images), 11):
        alone = verify(images[i : i + 1], records[i : i + 1])
        assert alone.strict[0] == whole.strict[i] and alone.lenient[0] == whole.lenient[i]
        assert alone.soft[0].item() == pytest.approx(whole.soft[i].item(), abs=1e-6)


def test_what_cannot_be_judged_is_an_error() -> None:
    image = picture(("red", "circle", 0))
    with pytest.raises(ValueError, match=r"reads \(B, 3, 36, 36\) images, got \(1, 3, 32, 32\)"):
        parse(image[:, :, :32, :32])
    with pytest.raises(ValueError, match="non-finite pixels"):
        parse(image * float("nan"))
    with pytest.raises(ValueError, match="1 images but 2 metadata records"):
        verify(image, [captions()[0].metadata()] * 2)
    with pytest.raises(UserError, match="needs GenEval metadata with shapes circle, square, triangle, cross; got None"):
        verify(image, [None])
    with pytest.raises(UserError, match="'class': 'dog'"):
        verify(image, [{"prompt": "a dog", "include": [{"class": "dog", "count": 1}]}])
