"""What the world's verifier reads in a watched student's images, kept so that the report can show a run's path.

Each evaluation leaves a file in the run folder, the same bytes whenever it is made, before its line is in the journal.
So a resumed run finds those that its checkpoint knows, and makes the others again. At the end they are one table,
watched_parses.csv: a line per image of every evaluation that the journal has.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, write_atomic, write_json
from rtdmd.world.cells import RECORD, cell_letters
from rtdmd.world.verifier import verify

if TYPE_CHECKING:
    from torch import Tensor

    from rtdmd.prompts.records import Prompt

Row = list[str | int]


def read_images(suite: str, drawn: Sequence[tuple[Prompt, int]], images: Tensor) -> list[Row]:
    """The suite and a RECORD of each image (B, 3, H, W) in [0, 1] of a suite's prompts with their images' indices."""
    verdict = verify(images, [prompt.metadata for prompt, _ in drawn])
    read = verdict.parse
    cells = cell_letters(read.state.numpy(), read.shape.numpy(), read.color.numpy(), read.size.numpy())
    strict = verdict.strict.int().tolist()
    background = read.background.tolist()
    return [
        [suite, prompt.id, index, prompt.tag or "all", strict[i], background[i], cells[i]]
        for i, (prompt, index) in enumerate(drawn)
    ]


def keep_parses(run_dir: Path, number: int, rows: Sequence[Row]) -> None:
    """The records of the evaluation after ``number`` steps, in the run folder."""
    folder = run_dir / "watched"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{number:06d}.json", {"images": list(rows)})


def write_watched_parses(run_dir: Path, unit: str, numbers: Sequence[int], path: Path) -> None:
    """watched_parses.csv: the records of the evaluations after ``numbers`` steps; its head alone where no image was
    read. UserError where the run folder has lost one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([unit, "suite", *RECORD])
    for number in numbers:
        file = run_dir / "watched" / f"{number:06d}.json"
        if not file.is_file():
            raise UserError(f"{file}: the records after {number} steps are gone; `rm -r {run_dir}`, then run again")
        writer.writerows([number, *row] for row in read_json(file)["images"])
    write_atomic(path, text.getvalue())
