"""The journal of a training run: one JSON object a step, the source of curves.csv and of every diagnosis.

`journal.jsonl` lies in the run folder and grows with each step. A checkpoint holds its own copy, and resuming puts that
copy back: what a killed process wrote after its last checkpoint is gone, so no step is there twice. Names with a slash
(``machine/seconds``, ``latent/mean``) stay in the journal; the others are the columns of curves.csv.
"""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rtdmd.common.errors import UserError
from rtdmd.common.files import write_atomic
from rtdmd.common.sums import sum_in_order

Step = Mapping[str, float]
WATCH_SECONDS = "machine/watch_seconds"
"""Of a line's time, that of evaluations of the student (`rtdmd.train.engine.watch`); ``machine/seconds`` is without."""


@dataclass
class Journal:
    """The lines of a run so far, and the file that shows them while it runs. ``unit`` names a step's number."""

    path: Path
    unit: str
    lines: list[str] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def restore(self, text: str) -> None:
        """Go on after a checkpoint's copy: the file is that copy again, atomically."""
        self.lines = text.splitlines()
        write_atomic(self.path, text)
        self._since = time.perf_counter()

    def add(self, number: int, values: Step, images: int = 0) -> None:
        """Write one step's line, with what the machine took for it: the only values that differ between two runs."""
        now = time.perf_counter()
        trained = now - self._since - values.get(WATCH_SECONDS, 0.0)
        machine = {"machine/seconds": trained, "machine/peak_memory_mib": peak_memory_mib()}
        if images:
            machine["machine/images_per_second"] = images / trained
        self._since = now
        self.lines.append(json.dumps({self.unit: number, **values, **machine}, allow_nan=False))
        self._append(self.lines[-1] + "\n")

    def _append(self, text: str) -> None:
        """To the file itself: a link in its place is not followed elsewhere."""
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            message = f"{self.path}: no file to write to ({error.strerror}); `rm -r {self.path}`, then run again"
            raise UserError(message) from error
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(text)

    def text(self) -> str:
        """The whole journal."""
        return "".join(line + "\n" for line in self.lines)

    def steps(self, last: int | None = None) -> list[dict[str, float]]:
        """Every step's values, or those of the ``last`` ones."""
        return [json.loads(line) for line in (self.lines if last is None else self.lines[-last:])]

    def row(self, every: int) -> dict[str, float]:
        """The row of curves.csv under way, or just finished."""
        return mean_row(self.steps((len(self.lines) - 1) % every + 1), self.unit)

    def rows(self, every: int) -> list[dict[str, float]]:
        """The rows of curves.csv: means over ``every`` steps, of what was there."""
        steps = self.steps()
        return [mean_row(steps[first : first + every], self.unit) for first in range(0, len(steps), every)]


def mean_row(steps: Sequence[Step], unit: str) -> dict[str, float]:
    """Means of the steps' values, journal-only names left out; numbered after the last step."""
    seen: dict[str, list[float]] = {}
    for step in steps:
        for name, value in step.items():
            if name != unit and "/" not in name:
                seen.setdefault(name, []).append(value)
    return {unit: steps[-1][unit], **{name: sum_in_order(values) / len(values) for name, values in seen.items()}}


def peak_memory_mib() -> float:
    """Largest memory so far [MiB]: of the CUDA device where one is used, else of the process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB


def write_curves(rows: Sequence[Mapping[str, float]], path: Path, first: Sequence[str] = ()) -> None:
    """Rows as CSV with the union of their columns, numbers to 8 significant digits; ``first``: the first columns, which
    are there without rows too."""
    columns = dict.fromkeys(first)
    columns |= dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(list(columns))
    for row in rows:
        writer.writerow([f"{row[name]:.8g}" if name in row else "" for name in columns])
    write_atomic(path, text.getvalue())
