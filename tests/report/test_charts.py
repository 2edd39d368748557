"""Charts: the right place for each number, and text that cannot break the page."""

import re
import xml.etree.ElementTree as ET

import pytest

from rtdmd.evaluate.intervals import Estimate
from rtdmd.report import charts
from rtdmd.report.charts import (
    COLORS,
    DARK,
    OTHER,
    PALETTE,
    Frame,
    curve,
    forest,
    number,
    running_mean,
    tag_plot,
    thinned,
    ticks,
)


def test_frame_maps_corners_to_corners():
    frame = Frame(10, 20, 100, 50, (0, 4), (-1, 1))
    assert [frame.px(v) for v in (0, 2, 4)] == [10, 60, 110]
    assert [frame.py(v) for v in (-1, 0, 1)] == [70, 45, 20]


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(0, 1, [0, 0.5, 1]), (0, 1000, [0, 500, 1000]), (-0.31, 0.42, [-0.2, 0, 0.2, 0.4]), (3, 3, [3])],
)
def test_ticks_are_round_numbers_inside(low, high, found):
    assert ticks(low, high, 3) == pytest.approx(found)


def test_numbers_on_axes_are_short():
    assert [number(v) for v in (0, 0.25, 1234.0, 2e-5, 3e6)] == ["0", "0.25", "1234", "2e-5", "3e6"]


def test_running_mean_is_the_mean_and_keeps_the_length():
    assert running_mean([0, 1, 2, 3, 4], 3) == [0.5, 1, 2, 3, 3.5]
    assert running_mean([5.0], 1) == [5.0]


def test_a_curve_is_valid_svg_with_its_points():
    svg = ET.fromstring(curve("loss <a & b>", [0, 1, 2], [1.0, 3.0, 2.0], "iteration"))
    (line,) = svg.findall("polyline")
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert points[1][1] < points[2][1] < points[0][1]  # larger is higher up
    assert svg.findall("text")[0].text == "loss <a & b>"


def test_a_curve_has_its_values_for_the_pages_script():
    svg = ET.fromstring(curve("loss", [10, 20, 30], [1e-4, 1.0, 123456.789], "iteration"))
    assert svg.attrib["data-x"].split() == ["10", "20", "30"]
    assert [float(text) for text in svg.attrib["data-y"].split()] == [1e-4, 1.0, 123460.0]
    assert len(svg.findall("polyline")[0].attrib["points"].split()) == 3


def test_a_long_curve_is_thinned_to_means_of_neighbours():
    assert thinned([1, 2, 3], [5.0, 6.0, 7.0], 3) == ([1, 2, 3], [5.0, 6.0, 7.0])
    assert thinned([1, 2, 3, 4, 5], [0.0, 2.0, 4.0, 6.0, 9.0], 3) == ([2, 4, 5], [1.0, 5.0, 9.0])
    svg = ET.fromstring(curve("loss", range(1000), [0.5] * 1000, "epoch"))
    assert len(svg.attrib["data-y"].split()) == 334


def test_every_colour_of_the_charts_has_one_for_a_dark_ground():
    own = {charts.AXIS, charts.GRID, charts.INK, charts.OUT_OF_REACH, OTHER, *COLORS.values(), *PALETTE}
    assert own == set(DARK)


def test_a_wide_range_is_drawn_on_a_log_scale():
    svg = curve("loss", [0, 1, 2], [1e-3, 1.0, 1e3], "epoch")
    (line,) = re.findall(r' points="([^"]+)"', svg)
    rows = [float(p.split(",")[1]) for p in line.split()]
    assert rows[0] - rows[1] == pytest.approx(rows[1] - rows[2], abs=0.2)
    assert "log scale" in svg


def test_constant_curves_do_not_divide_by_zero():
    ET.fromstring(curve("flat", [1, 2], [0.0, 0.0], "epoch"))
    ET.fromstring(curve("one", [1], [2.0], "epoch"))


def test_tag_plot_has_a_dot_for_each_model_and_tag():
    value = Estimate(0.5, 0.1, None, 10)
    rows = {m: {"colors": value, "counting": Estimate(1.0, None, None, 1)} for m in ("teacher", "train_rtdmd")}
    svg = ET.fromstring(tag_plot(rows, {"teacher": "Teacher", "train_rtdmd": "Stage two"}))
    assert len(svg.findall("circle")) == 4 + 2  # and two in the legend


def test_forest_colours_what_leaves_out_zero():
    columns = {"strict": {"one": (0.3, 0.1), "<two>": (0.1, 0.3)}, "other": {"<two>": (-2.0, 1.0)}}
    svg = ET.fromstring(forest(columns))
    dots = svg.findall("circle")
    assert [dot.get("fill") for dot in dots] == [COLORS["train_acdmd"], OTHER, COLORS["train_acdmd"]]
    one, two, other = ((float(dot.get("cx")), float(dot.get("cy"))) for dot in dots)
    assert one[1] < two[1] == other[1] and two[0] < one[0] < other[0]
    bars = [line for line in svg.findall("line") if line.get("stroke-width") == "2"]
    middles = [(float(bar.get("x1")) + float(bar.get("x2"))) / 2 for bar in bars]
    assert middles == pytest.approx([one[0], two[0], other[0]], abs=0.11)
    wide, narrow = (float(bars[i].get("x2")) - float(bars[i].get("x1")) for i in (1, 0))
    assert wide == pytest.approx(3 * narrow, abs=0.5)
    assert {"one", "<two>", "strict", "other"} <= {text.text for text in svg.findall("text")}
