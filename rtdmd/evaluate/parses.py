"""What the world's verifier read from every judged image: the records behind the known optimum, and their file.

A cell is one character: `.` empty, `?` clutter, else an object, by shape, then colour, then size (9 pixels before 10),
in the order of CELLS_ALPHABET. So nine characters and a digit for the background are all that is kept of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtdmd.common.errors import UserError
from rtdmd.common.parsing import read_table
from rtdmd.evaluate.plan import Item
from rtdmd.evaluate.tables import csv_text
from rtdmd.world import GRID
from rtdmd.world.grammar import COLORS, SHAPES
from rtdmd.world.render import BACKGROUNDS
from rtdmd.world.verifier import Verdict

SMALL = 9  # pixels: the smaller of the world's two sizes
EMPTY = "."
CLUTTER = "?"
OBJECTS = "0123456789abcdefghijklmnopqrstuv"  # shape * 8 + color * 2 + (size is 10 pixels)
HEADER = ("suite", "model", "prompt_id", "index", "tag", "strict", "background", "cells")
AGAIN = "`rtdmd evaluate` writes results/evaluate/parses.csv"


@dataclass(frozen=True)
class Parses:
    """The verifier's reading of N images of one model.

    prompts, indices: (N,) the plan's keys; tags: (N,) text; right: (N,) bool, the strict verdict; background: (N,)
    index into BACKGROUNDS; state: (N, 9) 0 empty, 1 object, -1 clutter; shape, color, size: (N, 9), meaningful where
    state is 1, else 0.
    """

    prompts: np.ndarray
    indices: np.ndarray
    tags: np.ndarray
    right: np.ndarray
    background: np.ndarray
    state: np.ndarray
    shape: np.ndarray
    color: np.ndarray
    size: np.ndarray

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, chosen: np.ndarray) -> Parses:
        """Some of the images: an array of indices or of truth values."""
        return Parses(**{name: getattr(self, name)[chosen] for name in Parses.__dataclass_fields__})


def parses_of(items: Sequence[Item], verdicts: Sequence[Verdict]) -> Parses:
    """The records of planned images from the verdicts of their batches, in the plan's order."""
    state = np.concatenate([verdict.parse.state.numpy() for verdict in verdicts])

    def of_objects(name: str) -> np.ndarray:
        values = np.concatenate([getattr(verdict.parse, name).numpy() for verdict in verdicts])
        return np.where(state == 1, values, 0)

    return Parses(
        prompts=np.array([item.prompt.id for item in items]),
        indices=np.array([item.index for item in items]),
        tags=np.array([item.tag for item in items]),
        right=np.concatenate([verdict.strict.numpy() for verdict in verdicts]) == 1,
        background=np.concatenate([verdict.parse.background.numpy() for verdict in verdicts]),
        state=state,
        shape=of_objects("shape"),
        color=of_objects("color"),
        size=of_objects("size"),
    )


def parses_csv(suites: Mapping[str, Mapping[str, Parses]]) -> str:
    """One line an image of every suite and model."""
    lines = []
    for suite, models in suites.items():
        for model, parses in models.items():
            cells = _letters(parses)
            for i in range(len(parses)):
                key = [suite, model, int(parses.prompts[i]), int(parses.indices[i]), str(parses.tags[i])]
                lines.append([*key, int(parses.right[i]), int(parses.background[i]), "".join(cells[i])])
    return csv_text(HEADER, lines)


def _letters(parses: Parses) -> np.ndarray:
    """(N, 9) a character a cell."""
    code = parses.shape * 2 * len(COLORS) + parses.color * 2 + (parses.size != SMALL)
    letters = np.where(parses.state == 1, np.array(list(OBJECTS))[code], EMPTY)
    return np.where(parses.state == -1, CLUTTER, letters)


def read_parses(path: Path, suite: str, model: str) -> Parses:
    """One model's records of a suite from a parses.csv. UserError naming the file when it, the model, the suite or a
    field is not right."""
    header, every = read_table(path, AGAIN)
    if tuple(header) != HEADER:
        raise UserError(f"{path}: not a parses.csv (its first line must be {','.join(HEADER)}); {AGAIN}")
    lines = [line for line in every if line["suite"] == suite and line["model"] == model]
    if not lines:
        held = ", ".join(dict.fromkeys(f"{line['model']} on {line['suite']}" for line in every)) or "nothing"
        raise UserError(f"{path}: no {model} on {suite}; it holds {held}; {AGAIN}")
    for line in lines:
        cells = line["cells"]
        numbers = all(line[name].isdigit() for name in ("prompt_id", "index", "strict", "background"))
        known = len(cells) == GRID * GRID and set(cells) <= {EMPTY, CLUTTER, *OBJECTS}
        if not (numbers and known and int(line["background"]) < len(BACKGROUNDS)):
            raise UserError(f"{path}: no record of an image: {','.join(line.values())}; {AGAIN}")
    letters = np.array([list(line["cells"]) for line in lines])
    state = np.where(letters == EMPTY, 0, np.where(letters == CLUTTER, -1, 1))
    place = {letter: code for code, letter in enumerate(OBJECTS)}
    code = np.array([[place.get(letter, 0) for letter in row] for row in letters])
    return Parses(
        prompts=np.array([int(line["prompt_id"]) for line in lines]),
        indices=np.array([int(line["index"]) for line in lines]),
        tags=np.array([line["tag"] for line in lines]),
        right=np.array([line["strict"] == "1" for line in lines]),
        background=np.array([int(line["background"]) for line in lines]),
        state=state,
        shape=np.where(state == 1, code // (2 * len(COLORS)), 0),
        color=np.where(state == 1, code // 2 % len(COLORS), 0),
        size=np.where(state == 1, SMALL + code % 2, 0),
    )


assert len(OBJECTS) == 2 * len(SHAPES) * len(COLORS)
