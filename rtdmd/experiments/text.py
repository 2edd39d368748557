"""The experiments as text: the list, one table, and the check of what agrees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import indent, wrap
from typing import TYPE_CHECKING

from rtdmd.common import columns
from rtdmd.common.errors import RtdmdError
from rtdmd.experiments import TABLES
from rtdmd.published.figures import Cell, parts, rows_of, stands_for, summary
from rtdmd.published.table import Run, Table

if TYPE_CHECKING:
    from rtdmd.experiments.jobs import Jobs

WIDTH = 110


def list_text() -> Iterator[str]:
    """Every table with its rows: the published figures, and which model of which run stands for them."""
    for name, table in TABLES.items():
        yield from (*table_text(name, table), "")


def table_text(name: str, table: Table) -> Iterator[str]:
    """One table as published, its runs, and what cannot be stated."""
    yield f"{name}: {table.title} ({table.source})"
    head = ["", "passes", *(column.title for column in table.columns), "run, model"]
    rows = [[row.title, str(row.passes), *row.figures.split(), stands_for(row)] for row in table.rows]
    yield from _aligned([head, *rows])
    for row in table.rows:
        if row.missing:
            yield from _wrapped(f"missing, {row.title}: {row.missing}")
    for run in table.runs().values():
        yield from _wrapped(run_text(run))
        for text in run.departs:
            yield from _wrapped(f"departs, {run.name}: {text}")
    for note in table.notes:
        yield from _wrapped(f"note: {note}")


def run_text(run: Run) -> str:
    method = f", method {run.method}" if run.method else ""
    return f"run {run.name}: {run.about} (preset {run.preset}{method})"


def check_text(names: Sequence[str], jobs: Jobs) -> Iterator[str]:
    """published | ours ± interval | difference of every cell of these tables that has a figure. Rows with a run that
    has not been evaluated come first. RtdmdError at the end where there is one, or where a cell that could agree does
    not."""
    failed = []
    for name in names:
        table = TABLES[name]
        cells = jobs.cells(table)
        yield f"{name}: {table.title}"
        rows = [row for row, own in rows_of(table, cells) if any(cell.verdict == "not measured" for cell in own)]
        for row in rows:
            yield f"  not measured, {row.title}: {stands_for(row)}"
        lines = [["", "", "published", "ours", "difference", ""]]
        for row, own in rows_of(table, cells):
            shown = [cell for cell in own if cell.published is not None or cell.ours is not None]
            lines += [[row.title, cell.column.title, *_figures(cell), cell.verdict] for cell in shown]
        yield from _aligned(lines)
        said = summary(cells)
        yield f"{name}: {said}"
        if rows:
            failed.append(f"{name}: {said}; `snakemake experiment_{name}` measures what is not")
        elif any(cell.verdict.startswith(("off", "no interval", "too wide")) for cell in cells):
            failed.append(f"{name}: {said}")
    if failed:
        raise RtdmdError("; ".join(failed))


def _figures(cell: Cell) -> tuple[str, str, str]:
    """published, ours ± interval, difference; a dash for what is not there."""
    published, ours, width, difference = parts(cell)
    return published or "-", f"{ours} {width}".strip() or "-", difference or "-"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns of figures, with text in the first and in the last."""
    return indent(columns.table(lines, left=(0, len(lines[0]) - 1)), "  ").splitlines()


def _wrapped(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
