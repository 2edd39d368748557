"""A table's page and its CSV: published | ours ± interval | difference of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rtdmd.common.files import write_atomic
from rtdmd.evaluate.tables import csv_text
from rtdmd.experiments import find_table
from rtdmd.experiments.text import run_text
from rtdmd.published.figures import Cell, summary
from rtdmd.published.table import Table
from rtdmd.report.html import Section, page, paragraphs, section
from rtdmd.report.published import table_section

if TYPE_CHECKING:
    from rtdmd.experiments.jobs import Jobs

OUT = "results/experiments"


def write_table(name: str, jobs: Jobs) -> Path:
    """table.csv and index.html in results/experiments/<name>; returns the page's path."""
    found = find_table(name)
    out = jobs.root / OUT / name
    cells = jobs.cells(found)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "table.csv", table_csv(cells))
    lead = f"{found.source}. {summary(cells).capitalize()}."
    write_atomic(out / "index.html", page(found.title, lead, [table_section(found, cells), about(found)]))
    return out / "index.html"


def about(found: Table) -> Section:
    """The runs behind the rows, and what departs; a row without a run says itself why."""
    lines = [run_text(run) for run in found.runs().values()]
    lines += [f"departs, {run.name}: {text}" for run in found.runs().values() for text in run.departs]
    lines += [f"note: {note}" for note in found.notes]
    return section("The runs", "The settings of one: rtdmd params --experiment NAME.", paragraphs(lines), "runs")


def table_csv(cells: Sequence[Cell]) -> str:
    """One line per cell."""
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
