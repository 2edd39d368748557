"""Scores over what they cost as inline SVG: a line a method with the range of its seeds as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rtdmd.report.charts import AXIS, GRID, INK, Frame, _line, _polyline, _svg, _text, number, ticks
from rtdmd.report.frontier import model_colors

WIDTH = 760
PLOT = 300  # pixels of the plot's inner height


@dataclass(frozen=True)
class Band:
    """A method's curve: x, and of the seeds' y the mean and the ends; all of one length."""

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def band_plot(bands: Mapping[str, Band], labels: Mapping[str, str], levels: Mapping[str, float], axes: str) -> str:
    """The plot of bands by method; ``labels``: names in the legend, a row each; ``levels``: dashed lines by name;
    ``axes``: what is upwards and to the right, "y over x"."""
    y_name, _, x_name = axes.partition(" over ")
    colors = model_colors(list(bands))
    head = 20 * len(bands) + 26
    height = head + PLOT + 48
    every = [value for band in bands.values() for value in (*band.low, *band.high)] + list(levels.values())
    pad = 0.05 * (max(every) - min(every)) or 0.05
    x_range = (0.0, max(band.x[-1] for band in bands.values()))
    frame = Frame(52, head, WIDTH - 72, PLOT, x_range, (min(every) - pad, max(every) + pad))
    right = frame.left + frame.width
    parts = []
    for tick in ticks(*frame.y, 5):
        parts.append(_line(frame.left, frame.py(tick), right, frame.py(tick), GRID))
        parts.append(_text(frame.left - 6, frame.py(tick) + 4, number(tick), "end", AXIS, 10))
    for tick in ticks(*frame.x, 6):
        parts.append(_text(frame.px(tick), head + PLOT + 16, number(tick), "middle", AXIS, 10))
    for label, level in levels.items():
        y = frame.py(level)
        ends = f'x1="{frame.left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"'
        parts.append(f'<line {ends} stroke="{INK}" stroke-width="1" stroke-dasharray="4 4"/>')
        parts.append(_text(right, y - 4, label, "end", size=10))
    for place, (name, band) in enumerate(bands.items()):
        corners = [*zip(band.x, band.high, strict=True), *reversed(list(zip(band.x, band.low, strict=True)))]
        points = " ".join(f"{frame.px(x):.1f},{frame.py(y):.1f}" for x, y in corners)
        parts.append(f'<polygon points="{points}" fill="{colors[name]}" fill-opacity="0.16"/>')
        parts.append(_polyline(frame, band.x, band.mean, colors[name], 2.0, 1.0))
        row = 12 + 20 * place
        parts.append(f'<circle cx="{frame.left + 6:.1f}" cy="{row}" r="5" fill="{colors[name]}"/>')
        parts.append(_text(frame.left + 17, row + 4, labels[name], size=12))
    parts.append(_text(frame.left + frame.width / 2, height - 8, x_name, "middle", size=12))
    parts.append(_text(4, head - 8, y_name, size=12))
    return _svg(WIDTH, height, parts, axes)
