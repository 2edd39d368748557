"""Scores over what they cost as inline SVG: a line per method with the range of its seeds as a band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from rtdmd.report.charts import INK, Frame, _axes, _key, _points, _polyline, _stroke, _svg, _text
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


def band_plot(bands: Mapping[str, Band], labels: Mapping[str, str], levels: Mapping[str, float], axes: str) -> Markup:
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
    parts = _axes(frame, columns=False)
    for label, level in levels.items():
        y = frame.py(level)
        parts.append(_stroke(frame.left, y, right, y, f'stroke="{INK}" stroke-width="1" stroke-dasharray="4 4"'))
        parts.append(_text(right, y - 4, label, "end", size=10))
    for place, (name, band) in enumerate(bands.items()):
        points = _points(frame, [*band.x, *reversed(band.x)], [*band.high, *reversed(band.low)])
        parts.append(f'<polygon points="{points}" fill="{colors[name]}" fill-opacity="0.16"/>')
        parts.append(_polyline(frame, band.x, band.mean, colors[name], 2.0, 1.0))
        parts.append(_key(frame.left, 12 + 20 * place, colors[name], labels[name]))
    parts.append(_text(frame.left + frame.width / 2, height - 8, x_name, "middle", size=12))
    parts.append(_text(4, head - 8, y_name, size=12))
    return _svg(WIDTH, height, parts, axes)
