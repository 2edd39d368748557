"""Cells of a published table as HTML."""

from __future__ import annotations

from decimal import Decimal

import pytest

from rtdmd.published.figures import Cell
from rtdmd.published.table import Column, Row, Run, Table
from rtdmd.report.published import cells_table

CLIP = Column("CLIPScore", "drawbench", "clipscore")
RUN = Run("sd3m", "sd3m", "a run")


@pytest.mark.parametrize(
    ("row", "published", "ours", "ci95", "html"),
    [
        (
            Row("RTDMD", 4, "0.94", RUN),
            "0.94",
            0.9549,
            0.0141,
            "RTDMD<br><small>sd3m, train_rtdmd</small></td><td>4</td>"
            "<td>0.94<br><b>0.955</b><br><small>± 0.014</small><br>+0.015<br><small>agrees</small></td>",
        ),
        (
            Row("RTDMD", 4, "0.2810", RUN, "teacher"),
            "0.2810",
            0.2900,
            0.0022,
            "RTDMD<br><small>sd3m, teacher</small></td><td>4</td>"
            "<td>0.2810<br>0.2900<br><small>± 0.0022</small><br>+0.0090<br><small>off by 4×</small></td>",
        ),
        (
            Row("ours <alone>", 4, "-", RUN),
            None,
            0.5,
            None,
            "ours &lt;alone&gt;<br><small>sd3m, train_rtdmd</small></td><td>4</td><td>–<br>0.5000</td>",
        ),
        (
            Row("Z", 50, "0.28", missing="there is no backbone"),
            "0.28",
            None,
            None,
            "Z<br><small>there is no backbone</small></td><td>50</td><td>0.28<br><small>no run</small></td>",
        ),
    ],
)
def test_a_cell_has_a_line_for_each_of_what_is_there(
    row: Row, published: str | None, ours: float | None, ci95: float | None, html: str
) -> None:
    cell = Cell(row, CLIP, None if published is None else Decimal(published), ours, ci95)
    (body,) = cells_table(Table("T", "s", (CLIP,), (row,)), [cell]).split("<tbody>")[1:]
    assert body == f"<tr><td>{html}</tr></tbody></table></div>"
