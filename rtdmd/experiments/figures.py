"""Published figures beside ours: the cells of a table, and whether they agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json
from rtdmd.experiments._table import Column, Row, Table

if TYPE_CHECKING:
    from rtdmd.experiments.jobs import Jobs

METRICS = "results/evaluate/metrics.json"
WIDEST = 0.25  # of the published figure: an interval that is wider agrees with nearly anything


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
        """Ours less the published figure."""
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
            return f"off by {self.factor:.1f}"
        return "agrees" if self.ci95 <= WIDEST * abs(float(self.published)) else "too wide"


def cells_of(table: Table, jobs: Jobs) -> list[Cell]:
    """Every cell of a table, row by row, with our figures where the run has been evaluated."""
    found: list[Cell] = []
    for row in table.rows:
        metrics = metrics_of(jobs, row)
        for column, published in zip(table.columns, table.published(row), strict=True):
            if metrics is None:
                found.append(Cell(row, column, published))
            else:
                value = figure(metrics, row.model, column)
                found.append(Cell(row, column, published, *scaled(value, column.times)))
    return found


def rows_of(table: Table, cells: list[Cell]) -> Iterator[tuple[Row, list[Cell]]]:
    """The cells by row."""
    for number, row in enumerate(table.rows):
        yield row, cells[number * len(table.columns) : (number + 1) * len(table.columns)]


def scaled(value: Mapping[str, float | None], times: float) -> tuple[float | None, float | None]:
    """Mean and interval of an entry of metrics.json in the published unit."""
    mean, half = value["mean"], value["ci95"]
    return None if mean is None else mean * times, None if half is None else half * times


def metrics_of(jobs: Jobs, row: Row) -> Mapping[str, Any] | None:
    """metrics.json of a row's run; None where it is not there yet, or of other parameters than the run's."""
    if row.run is None:
        return None
    run = row.run.name
    if not jobs.is_evaluated(run):
        return None
    metrics: Mapping[str, Any] = read_json(jobs.place(jobs.owners[run, "evaluate"]) / METRICS)
    return metrics


def figure(metrics: Mapping[str, Any], model: str, column: Column) -> Mapping[str, float | None]:
    """The entry of metrics.json behind a cell. UserError where it has none."""
    try:
        own = metrics["suites"][column.suite][model]
        value: Mapping[str, float | None] = (
            own[column.score] if column.tag is None else own["per_tag"][column.score][column.tag]
        )
    except KeyError as error:
        raise UserError(f"{METRICS}: no {error} for {column.title} of {model}; run the evaluation again") from error
    return value
