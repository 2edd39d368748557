"""What the world's verifier read from every judged image: the records behind the known optimum, and their file.

Nine characters (`rtdmd.world.cells`) and a digit for the background are all that is kept of an image.
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
from rtdmd.world.cells import RECORD, cell_letters, is_cells, read_cells
from rtdmd.world.render import BACKGROUNDS
from rtdmd.world.verifier import Verdict

HEADER = ("suite", "model", *RECORD)
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
    """One line per image of every suite and model."""
    lines = []
    for suite, models in suites.items():
        for model, parses in models.items():
            cells = cell_letters(parses.state, parses.shape, parses.color, parses.size)
            for i in range(len(parses)):
                key = [suite, model, int(parses.prompts[i]), int(parses.indices[i]), str(parses.tags[i])]
                lines.append([*key, int(parses.right[i]), int(parses.background[i]), cells[i]])
    return csv_text(HEADER, lines)


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
    return parses_from(lines, path, AGAIN)


def parses_from(lines: Sequence[Mapping[str, str]], path: Path, again: str) -> Parses:
    """The records in lines of a table at ``path``, by the columns of RECORD. UserError with ``again``, what makes it
    anew, where one of them is no record."""
    for line in lines:
        numbers = all(line[name].isdigit() for name in ("prompt_id", "index", "strict", "background"))
        if not (numbers and is_cells(line["cells"]) and int(line["background"]) < len(BACKGROUNDS)):
            raise UserError(f"{path}: no record of an image: {','.join(line.values())}; {again}")
    state, shape, color, size = read_cells([line["cells"] for line in lines])
    return Parses(
        prompts=np.array([int(line["prompt_id"]) for line in lines]),
        indices=np.array([int(line["index"]) for line in lines]),
        tags=np.array([line["tag"] for line in lines]),
        right=np.array([line["strict"] == "1" for line in lines]),
        background=np.array([int(line["background"]) for line in lines]),
        state=state,
        shape=shape,
        color=color,
        size=size,
    )
