"""The records of what the verifier read: as drawn, in few characters, and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rtdmd.common.errors import UserError
from rtdmd.common.rng import numpy_generator
from rtdmd.evaluate.parses import HEADER, Parses, parses_csv, parses_of, read_parses
from rtdmd.evaluate.plan import Item
from rtdmd.prompts.records import Prompt
from rtdmd.world.cells import CLUTTER, EMPTY, OBJECTS
from rtdmd.world.grammar import captions_of
from rtdmd.world.render import Scenes, render, sample_scenes
from rtdmd.world.verifier import verify
from tests.evaluate.world_distributions import parse_of


def judged() -> tuple[Parses, Scenes]:
    """Records of 76 drawn images, read in two batches; the last image has dots in an empty cell and is wrong."""
    captions = captions_of("heldout")
    items = [Item(Prompt(i, c.prompt, c.tag, c.metadata()), k) for i, c in enumerate(captions) for k in range(2)]
    texts = [caption for caption in captions for _ in range(2)]
    scenes = sample_scenes(texts, numpy_generator(0, "parses"))
    images = render(scenes)
    cell = int(np.flatnonzero(scenes.mask[-1] == 0)[-1])
    top, left = 12 * (cell // 3), 12 * (cell % 3)
    images[-1, :, top : top + 12 : 2, left : left + 12 : 2] = (
        1 - images[-1, :, top : top + 12 : 2, left : left + 12 : 2].round()
    )
    records = [caption.metadata() for caption in texts]
    verdicts = [verify(images[:50], records[:50]), verify(images[50:], records[50:])]
    return parses_of(items, verdicts), scenes


def test_records_are_what_was_drawn() -> None:
    parses, scenes = judged()
    assert len(parses) == 76 and parses.prompts.tolist() == sorted([*range(38), *range(38)])
    assert parses.indices.tolist() == [0, 1] * 38
    assert parses.right.tolist() == [True] * 75 + [False]
    wanted = parse_of(scenes)
    for name in ("shape", "color", "size"):
        assert torch.equal(torch.from_numpy(getattr(parses, name)), getattr(wanted, name)), name
    assert parses.background.tolist() == scenes.background.tolist()
    assert (parses.state[:-1] == wanted.state.numpy()[:-1]).all()
    assert (parses.state == -1).sum() == (parses.state[-1] == -1).sum() == 1


def test_the_file_gives_the_records_back(tmp_path: Path) -> None:
    parses, _ = judged()
    path = tmp_path / "parses.csv"
    path.write_text(
        parses_csv({"one": {"teacher": parses.rows(np.arange(3)), "train_rtdmd": parses}, "two": {"teacher": parses}})
    )
    again = read_parses(path, "one", "train_rtdmd")
    for name in Parses.__dataclass_fields__:
        assert getattr(again, name).tolist() == getattr(parses, name).tolist(), name
    few, many = (read_parses(path, suite, "teacher") for suite in ("one", "two"))
    assert (len(few), len(many)) == (3, len(parses))
    assert parses_csv({"one": {"teacher": few, "train_rtdmd": again}, "two": {"teacher": many}}) == path.read_text()
    assert len(path.read_text()) / (3 + 2 * 76) < 48  # characters an image


def test_every_object_has_a_character_of_its_own() -> None:
    kinds = [(shape, color, size) for shape in range(4) for color in range(4) for size in (9, 10)]
    middle = (np.arange(9) == 4).astype(np.int64)
    parses = Parses(
        prompts=np.zeros(32, dtype=np.int64),
        indices=np.arange(32),
        tags=np.array(["colors"] * 32),
        right=np.ones(32, dtype=bool),
        background=np.zeros(32, dtype=np.int64),
        state=np.tile(middle, (32, 1)),
        shape=np.outer([shape for shape, _, _ in kinds], middle),
        color=np.outer([color for _, color, _ in kinds], middle),
        size=np.outer([size for _, _, size in kinds], middle),
    )
    cells = [line.split(",")[-1] for line in parses_csv({"s": {"m": parses}}).splitlines()[1:]]
    assert cells == [f"....{letter}...." for letter in OBJECTS]
    assert len({EMPTY, CLUTTER, *OBJECTS}) == 34


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("suite,cells\ns,.........\n", r"not a parses\.csv \(its first line must be suite,model,prompt_id,index,tag"),
        (
            "s,m,1,0,colors,1,0,....Z....\n",
            r"no record of an image: s,m,1,0,colors,1,0,\.\.\.\.Z\.\.\.\.; `rtdmd evaluate`",
        ),
        ("s,m,1,0,colors,1,0,....0...\n", "no record of an image: s,m,1,0,colors"),
        ("s,m,1,0,colors,1,3,....0....\n", "no record of an image: s,m,1,0,colors,1,3"),
        ("s,m,1,0,colors,yes,0,....0....\n", "no record of an image: s,m,1,0,colors,yes"),
        ("s,teacher,1,0,colors,1,0,....0....\n", "no m on s; it holds teacher on s; `rtdmd evaluate` writes"),
        ("t,m,1,0,colors,1,0,....0....\n", "no m on s; it holds m on t; `rtdmd evaluate` writes"),
        ("", "no m on s; it holds nothing; `rtdmd evaluate` writes"),
    ],
)
def test_a_damaged_file_is_named_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "parses.csv"
    path.write_text(text if text.startswith("suite") else ",".join(HEADER) + "\n" + text)
    with pytest.raises(UserError, match=rf"parses\.csv: {message}"):
        read_parses(path, "s", "m")
