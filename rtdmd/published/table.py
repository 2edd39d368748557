"""What a published table is: columns, rows, and the run of ours behind each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from rtdmd.common.errors import UserError

NOT_GIVEN = "-"


@dataclass(frozen=True)
class Column:
    """One figure of a table. ``times``: the published unit in units of our score (PickScore's logit is 26 of ours)."""

    title: str
    suite: str  # of evaluate.suites
    score: str  # a scorer of that suite
    tag: str | None = None  # null: over all tags
    times: float = 1.0


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: adapters on the student's base of the run's preset, stacked in the order of ``files``."""

    repository: str  # of the Hub
    files: tuple[str, ...] = ("cold_start/generator_ema.pt", "rtdmd/generator_ema.pt")
    alpha: float = 64.0  # of the adapters, which the files do not say


@dataclass(frozen=True)
class Run:
    """One run of ours: a preset, a method's settings over it (`rtdmd methods`), and what else differs.

    ``rewards``: those of the preset's training rewards that are kept, None for all. ``checkpoint``: what is judged in
    place of a student of ours; nothing is trained. ``departs``: what the published run has and ours cannot be told, or
    what is our reading of it.
    """

    name: str
    preset: str
    about: str
    method: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    rewards: tuple[str, ...] | None = None
    checkpoint: Checkpoint | None = None
    departs: tuple[str, ...] = ()

    @property
    def imported(self) -> str | None:
        """The folder of its imported checkpoint, where workflow/experiments.yaml names no other; None without one."""
        return None if self.checkpoint is None else f"models/{self.name}"

    @property
    def changed(self) -> bool:
        return bool(self.method or self.changes or self.rewards or self.checkpoint)


@dataclass(frozen=True)
class Row:
    """A line of the published table. ``figures``: as printed there, in the order of the table's columns, `-` where none
    is given. ``model``: which of the run's models it is (evaluate.models). Without a run, ``missing`` says why."""

    title: str
    passes: int  # of the network for an image
    figures: str
    run: Run | None = None
    model: str = "train_rtdmd"
    missing: str = ""


@dataclass(frozen=True)
class Table:
    """One published table; its name is its file's."""

    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    scorers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # keys of a scorer in this table, by name

    def __post_init__(self) -> None:
        for row in self.rows:
            figures = row.figures.split()
            if len(figures) != len(self.columns):
                raise UserError(f"{self.title}, {row.title}: {len(figures)} figures for {len(self.columns)} columns")
            if (row.run is None) != bool(row.missing):
                raise UserError(f"{self.title}, {row.title}: a row has a run, or says in `missing` why it has none")

    def published(self, row: Row) -> tuple[Decimal | None, ...]:
        """A row's figures with the digits that they are printed with; None where none is given."""
        return tuple(None if text == NOT_GIVEN else Decimal(text) for text in row.figures.split())

    def runs(self) -> dict[str, Run]:
        """The runs behind the rows, each once, by name."""
        return {row.run.name: row.run for row in self.rows if row.run is not None}
