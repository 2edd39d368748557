"""Published figures beside ours as HTML: a table of them, and those that one run serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from rtdmd.published import TABLES, find_run
from rtdmd.published.figures import Cell, cells_of, parts, rows_of, stands_for, summary
from rtdmd.published.table import Row, Table
from rtdmd.report.html import Section, paragraphs, section, table

_HOW = (
    "In each cell, from above: the published figure (– where none is given), ours, its 95 % interval over noise on the"
    " same prompts, the difference. A cell agrees where the difference is within that interval and the rounding of the"
    " published figure together; “off by 2×” is a difference of twice that. The interval knows nothing of another"
    " training run."
)


def run_sections(experiment: str, metrics: Mapping[str, Any]) -> list[Section]:
    """A section for each published table with rows of the run ``experiment``: those rows, beside the run's own metrics.

    UserError for an unknown run.
    """
    run = find_run(experiment)
    sections = []
    for name, whole in TABLES.items():
        rows = tuple(row for row in whole.rows if row.run == run)
        if rows:
            own = replace(whole, rows=rows)
            cells = cells_of(own, lambda _: metrics)
            title = f"Published, ours, difference: {whole.title}"
            note = f"{whole.source}; run {experiment}. {summary(cells).capitalize()}."
            notes = paragraphs([note, *run.departs, *whole.notes])
            sections.append(section(title, _HOW, cells_table(own, cells) + notes, f"published-{name}"))
    return sections


def table_section(found: Table, cells: Sequence[Cell]) -> Section:
    """A whole table."""
    return section("Published, ours, difference", _HOW, cells_table(found, cells), "published")


def cells_table(found: Table, cells: Sequence[Cell]) -> Markup:
    """The rows and columns of a table."""
    header = ["Model", "Passes", *(column.title for column in found.columns)]
    return table(header, ([_title(row), str(row.passes), *map(_html, own)] for row, own in rows_of(found, cells)))


def _title(row: Row) -> Markup:
    """The row as published, and the run and model behind it, or why there is none."""
    return _lines(row.title, _small(row.missing or stands_for(row)))


def _html(cell: Cell) -> Markup:
    """One cell, a line each: published, or a dash; ours, its interval and the difference, as far as they are there; the
    verdict, which the dash can say alone."""
    published, ours, width, difference = parts(cell)
    strong = Markup("<b>{}</b>").format(ours) if cell.verdict == "agrees" else ours
    verdict = "" if cell.verdict == "not published" else cell.verdict
    return _lines(published or "–", strong, _small(width), difference, _small(verdict))


def _small(text: str) -> Markup:
    return Markup("<small>{}</small>").format(text) if text else Markup()


def _lines(*lines: str) -> Markup:
    return Markup("<br>").join(line for line in lines if line)
