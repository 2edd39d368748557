"""Charts as inline SVG: training curves as small multiples, and scores with their intervals. They are whole without a
script; a page's script (templates/page.js) shows a curve's values under the pointer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from markupsafe import Markup

from rtdmd.common.sums import sum_in_order
from rtdmd.evaluate.intervals import Estimate

COLORS = {
    "teacher": "#24292f",
    "teacher_few_step": "#9a6700",
    "student_base": "#8250df",
    "imported": "#bf3989",
    "train_acdmd": "#0969da",
    "train_rtdmd": "#1a7f37",
}
OTHER = "#6e7781"
AXIS = "#6e7781"
GRID = "#eaeef2"
INK = "#424a53"
OUT_OF_REACH = "#f3f4f6"
PALETTE = ("#bc4c00", "#1b7c83", "#4d2d00", "#0550ae", "#a40e26", "#6b8e00")
"""Of models that the report does not colour."""
DARK = {
    "#24292f": "#e6edf3",
    "#9a6700": "#d29922",
    "#8250df": "#a371f7",
    "#bf3989": "#f778ba",
    "#0969da": "#58a6ff",
    "#1a7f37": "#3fb950",
    "#6e7781": "#8b949e",
    "#eaeef2": "#2d333b",
    "#424a53": "#c9d1d9",
    "#f3f4f6": "#21262d",
    "#bc4c00": "#f0883e",
    "#1b7c83": "#39c5cf",
    "#4d2d00": "#c69026",
    "#0550ae": "#79c0ff",
    "#a40e26": "#ff7b72",
    "#6b8e00": "#a5c261",
}
"""What a page shows in place of each colour of the charts on a dark ground."""


MOST = 400  # points of a curve: more are closer together than the pixels of a chart


@dataclass(frozen=True)
class Frame:
    """A plot's inner rectangle in pixels and its data range; y grows upwards in data, downwards in pixels."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, value: float) -> float:
        """Pixel column of a data x."""
        low, high = self.x
        return self.left + self.width * (value - low) / (high - low if high > low else 1.0)

    def py(self, value: float) -> float:
        """Pixel row of a data y."""
        low, high = self.y
        return self.top + self.height * (1 - (value - low) / (high - low if high > low else 1.0))


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about `wanted` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / raw)))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A short number for an axis."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return format(value, ".4g")
    return format(value, ".0e").replace("e-0", "e-").replace("e+0", "e")


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = INK, size: int = 11) -> str:
    style = f'text-anchor="{anchor}" fill="{color}" font-size="{size}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1.0) -> str:
    return _stroke(x1, y1, x2, y2, f'stroke="{color}" stroke-width="{width}"')


def _stroke(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def _axes(frame: Frame, columns: bool) -> list[str]:
    """The numbers of both axes, with a line across the frame at each one upwards; ``columns``: at the others too."""
    parts = []
    bottom = frame.top + frame.height
    for tick in ticks(*frame.y, 5):
        parts.append(_line(frame.left, frame.py(tick), frame.left + frame.width, frame.py(tick), GRID))
        parts.append(_text(frame.left - 6, frame.py(tick) + 4, number(tick), "end", AXIS, 10))
    for tick in ticks(*frame.x, 6):
        if columns:
            parts.append(_line(frame.px(tick), frame.top, frame.px(tick), bottom, GRID))
        parts.append(_text(frame.px(tick), bottom + 16, number(tick), "middle", AXIS, 10))
    return parts


def _key(left: float, row: int, color: str, label: str) -> str:
    """An entry of a legend: a dot and its name."""
    return f'<circle cx="{left + 6:.1f}" cy="{row}" r="5" fill="{color}"/>' + _text(left + 17, row + 4, label, size=12)


def _svg(width: float, height: float, parts: Sequence[str], label: str, data: str = "") -> Markup:
    """The picture, with a ``label`` for those who do not see it; ``data``: attributes for the page's script."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img"{data}'
    return Markup(f'{head} aria-label="{escape(label, {chr(34): "&quot;"})}">{"".join(parts)}</svg>')


def curve(name: str, x: Sequence[float], y: Sequence[float], x_name: str, size: tuple[int, int] = (360, 170)) -> Markup:
    """One training curve: its points as a thin line and, from 30 points on, a running mean over a tenth of them. Of
    more than MOST points, means of neighbours are drawn. The values are in it for the page's script."""
    width, height = size
    x, y = thinned(x, y)
    log = min(y) > 0 and max(y) / min(y) > 100
    shown = [math.log10(v) for v in y] if log else list(y)
    low = min(shown)
    high = max(shown)
    pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    frame = Frame(46, 26, width - 58, height - 62, (min(x), max(x)), (low - pad, high + pad))
    parts = [_text(4, 15, name, size=13)]
    for tick in ticks(*frame.y, 3):
        label = number(10**tick) if log else number(tick)
        parts += [_line(frame.left, frame.py(tick), width - 12, frame.py(tick), GRID)]
        parts += [_text(frame.left - 5, frame.py(tick) + 4, label, "end", AXIS, 10)]
    for tick in ticks(*frame.x, 4):
        parts += [_text(frame.px(tick), height - 22, number(tick), "middle", AXIS, 10)]
    note = x_name + (", log scale upwards" if log else "")
    parts += [_text(frame.left + frame.width / 2, height - 7, note, "middle", AXIS, 10)]
    smooth = running_mean(shown, max(1, len(shown) // 10)) if len(shown) >= 30 else None
    parts += [_polyline(frame, x, shown, "#0969da", 1.0 if smooth else 1.6, 0.35 if smooth else 1.0)]
    if smooth:
        parts += [_polyline(frame, x, smooth, "#0969da", 2.0, 1.0)]
    columns = [" ".join(f"{value:.5g}" for value in values) for values in (x, y)]
    data = f' data-x="{columns[0]}" data-y="{columns[1]}"'
    return _svg(width, height, parts, f"{name} over {x_name}", data)


def thinned(x: Sequence[float], y: Sequence[float], most: int = MOST) -> tuple[list[float], list[float]]:
    """At most ``most`` points: means of equally many neighbours, each at the last x of its own."""
    each = -(-len(x) // most)
    starts = range(0, len(x), each)
    parts = [y[start : start + each] for start in starts]
    ends = [x[min(start + each, len(x)) - 1] for start in starts]
    return ends, [sum_in_order(part) / len(part) for part in parts]


def _polyline(frame: Frame, x: Sequence[float], y: Sequence[float], color: str, width: float, opacity: float) -> str:
    style = f'stroke="{color}" stroke-width="{width}" stroke-opacity="{opacity}" stroke-linejoin="round"'
    return f'<polyline points="{_points(frame, x, y)}" fill="none" {style}/>'


def _points(frame: Frame, x: Sequence[float], y: Sequence[float]) -> str:
    return " ".join(f"{frame.px(a):.1f},{frame.py(b):.1f}" for a, b in zip(x, y, strict=True))


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over up to `window` values to either side's half; shorter at the ends."""
    half = window // 2
    return [
        sum_in_order(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - half) : i + half + 1])
    ]


def tag_plot(rows: Mapping[str, Mapping[str, Estimate]], labels: Mapping[str, str], width: int = 1112) -> Markup:
    """Scores in [0, 1]: a group of dots with interval bars for each tag; `rows` maps model -> tag -> estimate."""
    tags = list(next(iter(rows.values())))
    height = 300
    frame = Frame(40, 34, width - 50, height - 66, (0, len(tags)), (0.0, 1.0))
    parts = []
    for k, model in enumerate(rows):
        parts.append(_key(frame.left + 190 * k, 12, COLORS.get(model, OTHER), labels[model]))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += [_line(frame.left, frame.py(tick), width - 10, frame.py(tick), GRID)]
        parts += [_text(frame.left - 6, frame.py(tick) + 4, f"{tick:.2f}", "end", AXIS, 10)]
    for column, tag in enumerate(tags):
        parts += [_text(frame.px(column + 0.5), height - 12, tag.replace("_", " "), "middle", size=12)]
        if column:
            parts += [_line(frame.px(column), frame.top, frame.px(column), frame.top + frame.height, GRID)]
        for k, (model, values) in enumerate(rows.items()):
            spread = 0.5 + (k - (len(rows) - 1) / 2) * min(0.18, 0.8 / len(rows))
            name = f"{labels[model]}, {tag.replace('_', ' ')}"
            parts += [_dot(frame, column + spread, values[tag], COLORS.get(model, OTHER), name)]
    return _svg(width, height, parts, "score of each model for each tag")


def _dot(frame: Frame, x: float, value: Estimate, color: str, name: str) -> str:
    px = frame.px(x)
    py = frame.py(value.mean)
    width = "" if value.ci95 is None else f" ± {value.ci95:.3f}"
    dot = circle(px, py, 4.5, color, f"{name}: {value.mean:.3f}{width}")
    if value.ci95 is None:
        return dot
    low = frame.py(max(0.0, value.mean - value.ci95))
    high = frame.py(min(1.0, value.mean + value.ci95))
    return _line(px, low, px, high, color, 1.6) + dot


def circle(px: float, py: float, radius: float, color: str, title: str = "") -> str:
    """A dot at a place in pixels; a browser shows its ``title`` under the pointer."""
    head = f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius:g}" fill="{color}"'
    return f"{head}><title>{escape(title)}</title></circle>" if title else f"{head}/>"


def forest(
    columns: Mapping[str, Mapping[str, tuple[float, float]]], width: int = 1112, label_width: int = 270
) -> Markup:
    """Differences with their intervals: a line per row, a column per figure; `columns` maps figure -> row ->
    (difference, half-width). An interval that leaves out 0 is coloured."""
    rows = list(dict.fromkeys(row for values in columns.values() for row in values))
    step = 20
    top = 26
    height = top + step * len(rows) + 22
    each = (width - label_width) / len(columns)
    parts = [_text(4, top + step * (i + 0.5) + 4, row, size=12) for i, row in enumerate(rows)]
    parts += [_line(0, top + step * i, width, top + step * i, GRID) for i in range(len(rows) + 1)]
    for c, (figure, values) in enumerate(columns.items()):
        ends = [0.0]
        for mean, half in values.values():
            ends += [mean - half, mean + half]
        pad = 0.05 * (max(ends) - min(ends)) or 1.0
        span = (min(ends) - pad, max(ends) + pad)
        frame = Frame(label_width + c * each + 8, top, each - 24, step * len(rows), span, (0.0, 1.0))
        parts += [_text(frame.left + frame.width / 2, 15, figure, "middle", size=12)]
        parts += [_line(frame.px(0), top, frame.px(0), top + frame.height, AXIS)]
        parts += [_text(frame.px(tick), height - 6, number(tick), "middle", AXIS, 10) for tick in ticks(*frame.x, 3)]
        for row, (mean, half) in values.items():
            y = top + step * (rows.index(row) + 0.5)
            color = COLORS["train_acdmd"] if abs(mean) > half else OTHER
            parts += [_line(frame.px(mean - half), y, frame.px(mean + half), y, color, 2)]
            parts += [circle(frame.px(mean), y, 3.5, color, f"{row}, {figure}: {mean:+.4g} ± {half:.2g}")]
    return _svg(width, height, parts, "differences with their intervals: " + ", ".join(columns))
