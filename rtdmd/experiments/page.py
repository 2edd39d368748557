"""A table's page and its CSV: published | ours ± interval | difference of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rtdmd.common.files import write_atomic
from rtdmd.evaluate.tables import csv_text
from rtdmd.experiments import find_table
from rtdmd.experiments._table import Table
from rtdmd.experiments.figures import Cell, cells_of, rows_of
from rtdmd.experiments.text import parts, run_text, stands_for, summary
from rtdmd.report.html import page, section, table

if TYPE_CHECKING:
    from rtdmd.experiments.jobs import Jobs

OUT = "results/experiments"
_HOW = (
    "In each cell: the published figure, ours with its 95 % interval over noise on the same prompts, the difference."
    " A cell agrees where the difference is within that interval and the rounding of the published figure; elsewhere it"
    " says how many times that the difference is. The interval knows nothing of another training run."
)


def write_table(name: str, jobs: Jobs) -> Path:
    """table.csv and index.html in results/experiments/<name>; returns the page's path."""
    found, out = find_table(name), jobs.root / OUT / name
    cells = cells_of(found, jobs)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "table.csv", table_csv(cells))
    lead = f"{found.source}. {summary(cells).capitalize()}."
    write_atomic(out / "index.html", page(found.title, lead, [published_section(found, cells), about(found)]))
    return out / "index.html"


def published_section(found: Table, cells: list[Cell]) -> str:
    """The table as HTML."""
    header = ["Model", "Passes", *(column.title for column in found.columns)]
    rows = [
        [escape(row.title) + f"<br><small>{escape(stands_for(row))}</small>", str(row.passes), *map(cell_html, own)]
        for row, own in rows_of(found, cells)
    ]
    return section("Published, ours, difference", _HOW, table(header, rows), "published")


def cell_html(cell: Cell) -> str:
    """One cell, a line each of published, ours, difference and verdict."""
    published, ours, difference = parts(cell)
    strong = f"<b>{escape(ours)}</b>" if cell.verdict == "agrees" else escape(ours)
    return f"{published}<br>{strong}<br>{difference}<br><small>{escape(cell.verdict)}</small>"


def about(found: Table) -> str:
    """The runs behind the rows, what departs, and what cannot be stated."""
    lines = [run_text(run) for run in found.runs().values()]
    lines += [f"departs, {run.name}: {text}" for run in found.runs().values() for text in run.departs]
    lines += [f"missing, {row.title}: {row.missing}" for row in found.rows if row.missing]
    lines += [f"note: {note}" for note in found.notes]
    body = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return section("The runs", "`rtdmd params --experiment NAME` prints the settings of one.", body, "runs")


def table_csv(cells: Sequence[Cell]) -> str:
    """One line a cell."""
    header = ["row", "column", "run", "model", "published", "ours", "ci95", "difference", "verdict"]
    return csv_text(
        header,
        (
            [
                cell.row.title,
                cell.column.title,
                cell.row.run and cell.row.run.name,
                cell.row.model if cell.row.run else None,
                cell.published,
                cell.ours,
                cell.ci95,
                cell.difference,
                cell.verdict,
            ]
            for cell in cells
        ),
    )
