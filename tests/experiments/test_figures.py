"""Published beside ours: units, digits, verdicts."""

from __future__ import annotations

from decimal import Decimal

import pytest

from rtdmd.experiments import TABLES
from rtdmd.experiments.text import parts, summary
from rtdmd.published.figures import Cell, figure, scaled
from rtdmd.published.table import Column, Row, Run

COLUMN = Column("PickScore", "drawbench", "pickscore", times=26.0)
ROW = Row("RTDMD", 4, "22.86", Run("sd3m", "sd3m", "a run"))


def cell(published: str | None, ours: float | None, ci95: float | None, row: Row = ROW) -> Cell:
    return Cell(row, COLUMN, None if published is None else Decimal(published), ours, ci95)


@pytest.mark.parametrize(
    ("published", "ours", "ci95", "verdict"),
    [
        ("22.86", 22.90, 0.04, "agrees"),
        ("22.86", 22.904, 0.04, "agrees"),  # 0.044 is within the interval and half a unit of the last digit
        ("22.86", 22.95, 0.04, "off by 2×"),  # 0.09 / (0.04 + 0.005)
        ("22.86", 22.77, 0.04, "off by 2×"),
        ("0.94", 0.944, 0.0, "agrees"),  # nothing but the published rounding
        ("0.940", 0.944, 0.0, "off by 8×"),
        ("0.80", 0.75, 0.20, "agrees"),  # a quarter of the figure, the widest that says anything
        ("0.80", 0.75, 0.21, "too wide"),
        ("0.80", 0.10, 0.21, "off by 3.26×"),
        ("22.86", None, None, "not measured"),
        ("22.86", 22.86, None, "no interval"),
        (None, 22.86, 0.04, "not published"),
        (None, None, None, "not measured"),
    ],
)
def test_verdicts(published: str | None, ours: float | None, ci95: float | None, verdict: str) -> None:
    assert cell(published, ours, ci95).verdict == verdict


def test_a_row_without_a_run_is_not_waited_for() -> None:
    assert cell("22.86", None, None, Row("R_dm", 4, "22.86", missing="known from its abstract")).verdict == "no run"


def test_cells_are_shown_with_the_published_digits() -> None:
    assert parts(cell("0.2810", 0.29004, 0.00216)) == ("0.2810", "0.2900", "± 0.0022", "+0.0090")
    assert parts(cell("22.86", 22.0, None)) == ("22.86", "22.000", "", "-0.860")
    assert parts(cell(None, 0.5, 0.1)) == ("", "0.5000", "± 0.1000", "")
    assert parts(cell("22.86", None, None)) == ("22.86", "", "", "")
    told = summary([cell("22.86", 22.9, 0.04), cell("22.86", 25.0, 0.04), cell("22.86", None, None)])
    assert told == "of 3 cells 1 agree, 1 off, 1 not measured"


def test_our_figures_are_found_by_suite_model_score_and_tag_in_the_published_unit() -> None:
    value = {"mean": 0.86, "ci95": 0.002, "ci95_prompts": 0.01}
    counting = {"mean": 0.5, "ci95": None, "ci95_prompts": None}
    own = {"pickscore": value, "geneval": value, "per_tag": {"geneval": {"counting": counting}}}
    metrics = {"suites": {"drawbench": {"train_rtdmd": own}, "geneval": {"teacher": own}}}
    assert scaled(figure(metrics, "train_rtdmd", COLUMN), 26.0) == pytest.approx((22.36, 0.052))
    tag = TABLES["geneval"].columns[3]
    assert tag.tag == "counting" and scaled(figure(metrics, "teacher", tag), tag.times) == (0.5, None)
    assert figure(metrics, "teacher", COLUMN) is None and figure(metrics, "imported", tag) is None
