"""The frontier plot as inline SVG: reward upwards, divergence from the teacher to the right, the optimum as a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from rtdmd.evaluate.frontier import plot_point
from rtdmd.report.charts import (
    AXIS,
    COLORS,
    OTHER,
    OUT_OF_REACH,
    PALETTE,
    Frame,
    _axes,
    _key,
    _line,
    _points,
    _polyline,
    _stroke,
    _svg,
    _text,
    circle,
)

WIDTH = 1112
PLOT = 330  # pixels of the plot's inner height
COLUMNS = 5  # of the legend


def frontier_plot(data: Mapping[str, Any], labels: Mapping[str, str]) -> Markup:
    """The plot of `rtdmd.evaluate.frontier.frontier`'s data.

    A point is a model. The dotted line to its left ends on the optimum of the same reward, so that its length is the
    excess, whose 95 % interval is the bar to both sides; the upright bar is the reward's (other noise, same captions).
    Small dots on a thin line are the students of a run in the order of its epochs, with the same two intervals, thin.
    Models beyond the palette are grey and numbered. ``labels``: names in the legend.
    """
    colors = model_colors([*data["models"], *data["paths"]])
    head = 22 * -(-len(data["models"]) // COLUMNS) + 24
    height = head + PLOT + 48
    frame = Frame(58, head, WIDTH - 78, PLOT, *_ranges(data))
    kl = [point["kl"] for point in data["optimum"]]
    reward = [point["reward"] for point in data["optimum"]]
    parts = [_out_of_reach(frame, kl, reward), *_axes(frame, columns=True)]
    middle = frame.left + frame.width / 2
    parts.append(_text(middle, height - 8, "divergence from the teacher, at least (nats per image)", "middle", size=12))
    parts.append(_text(4, head - 10, "strict score", size=12))
    parts.append(_polyline(frame, kl, reward, COLORS["teacher"], 2.0, 1.0))
    for name, points in data["paths"].items():
        x = [point["kl"] for point in points]
        y = [point["reward"] for point in points]
        parts.append(_polyline(frame, x, y, colors[name], 1.2, 0.6))
        parts += [_spread(frame, point, colors[name]) for point in points]
        for point in points:
            said = f"{labels[name]}, epoch {point['epoch']}: {_said(point)}"
            parts.append(circle(frame.px(point["kl"]), frame.py(point["reward"]), 2.2, colors[name], said))
    grey = [name for name in data["models"] if colors[name] == OTHER]
    numbers = {name: str(place) for place, name in enumerate(grey, 1)}
    for name, found in data["models"].items():
        parts.append(_point(frame, found, colors[name], labels[name]))
        if name in numbers:
            at = frame.px(found["kl"]["mean"]) + 6, frame.py(found["reward"]["mean"]) - 6
            parts.append(_text(*at, numbers[name], color=AXIS, size=10))
    for k, name in enumerate(data["models"]):
        column = frame.left + 205 * (k % COLUMNS)
        label = f"{numbers[name]}: {labels[name]}" if name in numbers else labels[name]
        parts.append(_key(column, 12 + 22 * (k // COLUMNS), colors[name], label))
    return _svg(WIDTH, height, parts, "reward against divergence from the teacher: the optimum and the models")


def model_colors(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name: the report's own, else one of the palette, in turn."""
    others = [name for name in dict.fromkeys(names) if name not in COLORS]
    own = {name: COLORS[name] for name in names if name in COLORS}
    return own | {name: PALETTE[i] if i < len(PALETTE) else OTHER for i, name in enumerate(others)}


def _ranges(data: Mapping[str, Any]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The data's ranges, with 0 and the whole of every interval inside; divergences below 0, which noise makes, too."""
    points = [point for path in data["paths"].values() for point in path]
    points += [plot_point(found) for found in data["models"].values()]
    x = [point["kl"] for point in data["optimum"]]
    y = [point["reward"] for point in data["optimum"]]
    for point in points:
        for values, name, width in ((x, "kl", "excess_ci95"), (y, "reward", "reward_ci95")):
            half = point[width] or 0.0
            values += [point[name] - half, point[name] + half]
    pad = 0.03 * (max(x) - min(0.0, *x))
    return (min(0.0, *x) - pad, max(x) + pad), (min(y) - 0.02, min(1.0, max(y) + 0.02))


def _out_of_reach(frame: Frame, kl: Sequence[float], reward: Sequence[float]) -> str:
    """The side of the curve on which no distribution lies: less divergence than its reward costs."""
    left = frame.left
    lowest = frame.x[0]
    highest = frame.y[1]
    points = _points(frame, [lowest, *kl, kl[-1], lowest], [reward[0], *reward, highest, highest])
    area = f'<polygon points="{points}" fill="{OUT_OF_REACH}"/>'
    return area + _text(left + 8, frame.top + 16, "out of reach", color=AXIS)


def _said(point: Mapping[str, Any]) -> str:
    """A point's figures, with their intervals as far as they are there."""
    figures = []
    for name, value, half in (
        ("strict", point["reward"], point["reward_ci95"]),
        ("divergence", point["kl"], None),
        ("excess", point["excess"], point["excess_ci95"]),
    ):
        figures.append(f"{name} {value:.3f}" if half is None else f"{name} {value:.3f} ± {half:.3f}")
    return ", ".join(figures)


def _ends(frame: Frame, point: Mapping[str, Any], name: str) -> tuple[float, float, float, float]:
    """Both ends in pixels of a point's interval: of "excess", which lies across, or of "reward", which is upright."""
    half = point[f"{name}_ci95"] or 0.0
    across, upwards = (half, 0.0) if name == "excess" else (0.0, half)
    x = point["kl"]
    y = point["reward"]
    return frame.px(x - across), frame.py(y - upwards), frame.px(x + across), frame.py(y + upwards)


def _spread(frame: Frame, point: Mapping[str, Any], color: str) -> str:
    """Both intervals of a student on a path, thin and pale."""
    bars = []
    for name in ("excess", "reward"):
        style = f'stroke="{color}" stroke-width="0.8" stroke-opacity="0.4"'
        bars.append(_stroke(*_ends(frame, point, name), style))
    return "".join(bars)


def _point(frame: Frame, found: Mapping[str, Any], color: str, label: str) -> str:
    """A model: its dot, both intervals, and the way from the optimum."""
    point = plot_point(found)
    y = frame.py(point["reward"])
    style = f'stroke="{color}" stroke-width="1.2" stroke-dasharray="2 3"'
    parts = [_stroke(frame.px(point["optimum"]), y, frame.px(point["kl"]), y, style)]
    for name in ("excess", "reward"):
        if point[f"{name}_ci95"] is not None:
            parts.append(_line(*_ends(frame, point, name), color, 1.6))
    x = frame.px(point["kl"])
    y = frame.py(point["reward"])
    return "".join(parts) + circle(x, y, 4.5, color, f"{label}: {_said(point)}")
