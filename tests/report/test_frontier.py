"""The frontier plot: every mark where its figure is, and text that cannot break the page."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from rtdmd.report.charts import COLORS, OTHER
from rtdmd.report.frontier import OUT_OF_REACH, PALETTE, WIDTH, frontier_plot, model_colors


def figure(reward: float, kl: float, optimum: float, half: float | None = 0.02) -> dict[str, Any]:
    """A model's figures, as far as the plot reads them."""
    return {
        "reward": {"mean": reward, "ci95": half},
        "kl": {"mean": kl, "ci95": 0.5},
        "optimum": {"mean": optimum, "ci95": 0.5},
        "excess": {"mean": kl - optimum, "ci95": 0.03},
    }


DATA: dict[str, Any] = {
    "optimum": [{"beta": b, "reward": r, "kl": k} for b, r, k in ((0, 0.6, 0.0), (1, 0.8, 0.1), (3, 0.95, 0.4))],
    "models": {
        "teacher": figure(0.6, 0.0, 0.0),
        "train_rtdmd": figure(0.8, 0.2, 0.1),
        "<mine>": figure(0.7, 0.3, 0.04, None),
    },
    "paths": {
        "train_rtdmd": [
            {"epoch": 1, "reward": 0.65, "kl": 0.05, "excess": 0.03, "reward_ci95": 0.04, "excess_ci95": 0.1},
            {"epoch": 2, "reward": 0.75, "kl": 0.15, "excess": 0.08, "reward_ci95": None, "excess_ci95": 0.0},
        ]
    },
}
LABELS = {"teacher": "Teacher", "train_rtdmd": "Stage two", "<mine>": "Mine & others"}


def drawn() -> ET.Element:
    return ET.fromstring(frontier_plot(DATA, LABELS))


def dots(svg: ET.Element, radius: str) -> list[tuple[float, float, str]]:
    """Centres and colours of the circles of a size."""
    return [
        (float(c.attrib["cx"]), float(c.attrib["cy"]), c.attrib["fill"])
        for c in svg.findall("circle")
        if c.attrib["r"] == radius
    ]


def test_points_are_where_their_figures_are() -> None:
    svg = drawn()
    teacher, rtdmd, mine = dots(svg, "4.5")
    assert [dot[2] for dot in (teacher, rtdmd, mine)] == [COLORS["teacher"], COLORS["train_rtdmd"], PALETTE[0]]
    assert (mine[0] - teacher[0]) / (rtdmd[0] - teacher[0]) == pytest.approx(1.5, abs=0.01)  # nats, to the right
    assert (teacher[1] - rtdmd[1]) / (teacher[1] - mine[1]) == pytest.approx(2.0, abs=0.01)  # reward, upwards
    curve = next(line for line in svg.findall("polyline") if line.attrib["stroke"] == COLORS["teacher"])
    points = [tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()]
    assert points[0] == pytest.approx(teacher[:2], abs=0.11)
    assert points[1][1] == pytest.approx(rtdmd[1], abs=0.11) and points[1][0] < rtdmd[0]


def test_the_dotted_line_is_the_excess_and_the_bar_its_interval() -> None:
    svg = drawn()
    _, rtdmd, mine = dots(svg, "4.5")
    nats = (mine[0] - rtdmd[0]) / 0.1  # pixels a nat
    dotted = [line.attrib for line in svg.findall("line") if "stroke-dasharray" in line.attrib]
    lengths = [(float(line["x2"]) - float(line["x1"])) / nats for line in dotted]
    assert lengths == pytest.approx([0.0, 0.1, 0.26], abs=2e-3)
    bars = [line.attrib for line in svg.findall("line") if line.get("stroke-width") == "1.6"]
    across = [line for line in bars if line["y1"] == line["y2"] and line["stroke"] == COLORS["train_rtdmd"]]
    assert [(float(line["x2"]) - float(line["x1"])) / nats for line in across] == pytest.approx([0.06], abs=2e-3)
    upright = [line["stroke"] for line in bars if line["x1"] == line["x2"]]
    assert upright == [COLORS["teacher"], COLORS["train_rtdmd"]]  # none where the reward has no interval


def test_a_path_is_a_line_through_its_epochs() -> None:
    svg = drawn()
    small = dots(svg, "2.2")
    line = next(line for line in svg.findall("polyline") if line.attrib["stroke"] == COLORS["train_rtdmd"])
    assert " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in small) == line.attrib["points"]
    assert small[0][0] < small[1][0] and small[0][1] > small[1][1]
    bars = [line.attrib for line in svg.findall("line") if line.attrib.get("stroke-opacity") == "0.4"]
    lengths = [float(bar["x2"]) - float(bar["x1"]) for bar in bars] + [float(bars[1]["y1"]) - float(bars[1]["y2"])]
    across = small[1][0] - small[0][0]  # 0.1 nats
    upwards = small[0][1] - small[1][1]  # 0.1 of the reward
    assert lengths == pytest.approx([2 * across, 0.0, 0.0, 0.0, 0.8 * upwards], abs=0.21)


def test_a_dot_says_its_figures() -> None:
    titles = [title.text for title in drawn().findall("circle/title")]
    assert titles == [
        "Stage two, epoch 1: strict 0.650 ± 0.040, divergence 0.050, excess 0.030 ± 0.100",
        "Stage two, epoch 2: strict 0.750, divergence 0.150, excess 0.080 ± 0.000",
        "Teacher: strict 0.600 ± 0.020, divergence 0.000, excess 0.000 ± 0.030",
        "Stage two: strict 0.800 ± 0.020, divergence 0.200, excess 0.100 ± 0.030",
        "Mine & others: strict 0.700, divergence 0.300, excess 0.260 ± 0.030",
    ]


def test_what_no_law_reaches_is_above_the_curve() -> None:
    svg = drawn()
    (area,) = svg.findall("polygon")
    assert area.attrib["fill"] == OUT_OF_REACH
    corners = [tuple(map(float, point.split(","))) for point in area.attrib["points"].split()]
    assert corners[0][0] == corners[-1][0] == 58 and corners[-1][1] == corners[-2][1] == min(y for _, y in corners)


def test_texts_are_escaped_and_the_legend_wraps() -> None:
    texts = [text.text for text in drawn().findall("text")]
    assert {"Teacher", "Stage two", "Mine & others", "strict score", "out of reach"} <= set(texts)
    many = DATA | {"models": {f"m{i}": figure(0.7, 0.1, 0.05) for i in range(12)}, "paths": {}}
    svg = ET.fromstring(frontier_plot(many, {f"m{i}": f"M {i}" for i in range(12)}))
    legend = dots(svg, "5")
    assert sorted({y for _, y, _ in legend}) == [12, 34, 56] and max(x for x, _, _ in legend) < WIDTH - 150
    assert float(svg.attrib["height"]) == float(drawn().attrib["height"]) + 44


def test_colours_are_the_reports_own_then_the_palettes_then_grey() -> None:
    colors = model_colors(["teacher", *(f"m{i}" for i in range(8)), "teacher"])
    assert colors["teacher"] == COLORS["teacher"]
    assert [colors[f"m{i}"] for i in range(8)] == [*PALETTE, OTHER, OTHER]
    assert len(set(PALETTE)) == len(PALETTE) and not set(PALETTE) & set(COLORS.values())


def test_a_divergence_below_0_stays_inside_the_plot() -> None:
    noisy = DATA | {"models": {"teacher": figure(0.59, -0.02, 0.001)}, "paths": {}}
    svg = ET.fromstring(frontier_plot(noisy, LABELS))
    ((x, _, _),) = dots(svg, "4.5")
    assert 58 < x < WIDTH - 20


def test_models_beyond_the_palette_are_told_apart_by_numbers() -> None:
    names = [f"m{i}" for i in range(len(PALETTE) + 2)]
    data = DATA | {"models": {name: figure(0.7, 0.1 * i, 0.05) for i, name in enumerate(names)}, "paths": {}}
    svg = ET.fromstring(frontier_plot(data, {name: name for name in names}))
    numbered = {
        text.text: text
        for text in svg.findall("text")
        if text.text in ("1", "2") and text.attrib["font-size"] == "10" and text.attrib["text-anchor"] == "start"
    }
    last = dots(svg, "4.5")[-2:]
    assert [(float(numbered[n].attrib["x"]), float(numbered[n].attrib["y"])) for n in ("1", "2")] == [
        (pytest.approx(x + 6, abs=0.11), pytest.approx(y - 6, abs=0.11)) for x, y, _ in last
    ]
    assert {f"1: {names[-2]}", f"2: {names[-1]}"} <= {text.text for text in svg.findall("text")}
