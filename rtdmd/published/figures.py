"""Published figures beside ours: the cells of a table, and whether they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rtdmd.published.table import Column, Row, Table

WIDEST = 0.25  # of the published figure: an interval that is wider agrees with nearly anything
KINDS = {
    "agrees": "agree",
    "off by": "off",
    "too wide": "too wide",
    "not measured": "not measured",
    "no interval": "without interval",
    "no run": "without run",
    "not published": "not published",
}
"""What a verdict begins with, and what many of it are called."""


@dataclass(frozen=True)
class Cell:
    """One figure of a table, ours in the published unit. ``ci95``: half-width of the interval over noise, on the same
    prompts; None where the images tell no spread."""

    row: Row
    column: Column
    published: Decimal | None
    ours: float | None = None
    ci95: float | None = None

    @property
    def rounding(self) -> float:
        """Half a unit of the published figure's last digit."""
        if self.published is None:
            return 0.0
        exponent = self.published.as_tuple().exponent
        assert isinstance(exponent, int)  # a finite number
        return float(Decimal(5).scaleb(exponent - 1))

    @property
    def difference(self) -> float | None:
        if self.ours is None or self.published is None:
            return None
        return self.ours - float(self.published)

    @property
    def factor(self) -> float | None:
        """The difference in units of the interval and the published rounding; None where either is not known."""
        if self.difference is None or self.ci95 is None:
            return None
        return abs(self.difference) / (self.ci95 + self.rounding)

    @property
    def verdict(self) -> str:
        """agrees, off by a factor, or why that cannot be told."""
        if self.ours is None and self.row.run is not None:
            return "not measured"
        if self.published is None:
            return "not published"
        if self.ours is None:
            return "no run"
        if self.factor is None or self.ci95 is None:
            return "no interval"
        if self.factor > 1:
            return f"off by {self.factor:.3g}×"
        return "agrees" if self.ci95 <= WIDEST * abs(float(self.published)) else "too wide"


def cells_of(table: Table, metrics_of: Callable[[Row], Mapping[str, Any] | None]) -> list[Cell]:
    """Every cell of a table, row by row. metrics_of: metrics.json of a row's run, None where it is not evaluated."""
    found: list[Cell] = []
    for row in table.rows:
        metrics = metrics_of(row)
        for column, published in zip(table.columns, table.published(row), strict=True):
            value = None if metrics is None else figure(metrics, row.model, column)
            measured = (None, None) if value is None else scaled(value, column.times)
            found.append(Cell(row, column, published, *measured))
    return found


def rows_of(table: Table, cells: Sequence[Cell]) -> Iterator[tuple[Row, Sequence[Cell]]]:
    for number, row in enumerate(table.rows):
        yield row, cells[number * len(table.columns) : (number + 1) * len(table.columns)]


def scaled(value: Mapping[str, float | None], times: float) -> tuple[float | None, float | None]:
    """Mean and interval of an entry of metrics.json in the published unit."""
    mean = value["mean"]
    half = value["ci95"]
    return None if mean is None else mean * times, None if half is None else half * times


def figure(metrics: Mapping[str, Any], model: str, column: Column) -> Mapping[str, float | None] | None:
    """The entry of metrics.json behind a cell; None where the evaluation has not asked for it."""
    own = metrics["suites"].get(column.suite, {}).get(model, {})
    value: Mapping[str, float | None] | None = (
        own.get(column.score) if column.tag is None else own.get("per_tag", {}).get(column.score, {}).get(column.tag)
    )
    return value


def stands_for(row: Row) -> str:
    """The run and model behind a row."""
    return "-" if row.run is None else f"{row.run.name}, {row.model}"


def summary(cells: Sequence[Cell]) -> str:
    """How many cells agree, are off, and cannot be told."""
    counts = {said: sum(cell.verdict.startswith(kind) for cell in cells) for kind, said in KINDS.items()}
    return f"of {len(cells)} cells " + ", ".join(f"{count} {said}" for said, count in counts.items() if count)


def parts(cell: Cell) -> tuple[str, str, str, str]:
    """published as it is printed; ours, its interval and the difference with as many digits, and three at least, since
    two can hide on which side of the interval a difference is. What is not there is empty."""
    digits = 4 if cell.published is None else max(3, -int(cell.published.as_tuple().exponent))
    published = "" if cell.published is None else str(cell.published)
    ours = "" if cell.ours is None else f"{cell.ours:.{digits}f}"
    width = "" if cell.ci95 is None else f"± {cell.ci95:.{digits}f}"
    difference = "" if cell.difference is None else f"{cell.difference:+.{digits}f}"
    return published, ours, width, difference
