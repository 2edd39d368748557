"""The parts of the report on the training: curves, scores while it trained, and the image log."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from rtdmd.common.errors import UserError
from rtdmd.common.parsing import read_table
from rtdmd.evaluate.names import TAGS, in_order
from rtdmd.report.charts import curve
from rtdmd.report.html import Section, paragraphs, picture, section, titled

Columns = dict[str, list[float | None]]
PANELS = 6  # of a stage that the page shows, evenly spread and the last among them
PANEL_WIDTH = 1200  # pixels of a panel in the page at most
PANEL_BYTES = 60_000
AGAIN = "run the training stage again"
_CURVES = (
    "Thin lines are the logged values and thick ones their running mean: a loss that keeps falling was not yet"
    " converged, a jump that stays is a fault. The values at a step are shown under the pointer, in all charts of the"
    " stage at once; the arrow keys move it."
)
_WATCHED = (
    "The EMA student on a few held-out prompts of each suite, always of the same noise, the first point before the"
    " first step: read the trend, not a point, and take the results above for figures. Strict: the share of its images"
    " of a tag that the world's verifier found right."
)
_LOG = (
    "The same eight prompts over the training: the generator's samples, then the teacher's and the fake score's"
    " estimates of them from one noised point. Where the last two agree the matching term has nothing left to say;"
    " where the fake score's row is a blur it lags behind. At their full size, and all of them, they are in the"
    " stage's image_log.zip."
)


def curves(files: Mapping[str, Path]) -> Section | None:
    """Training curves of each stage: every numeric column of its curves.csv over the first; None where none was
    trained."""
    body = Markup()
    for title, path in files.items():
        x_name, columns = read_curves(path)
        if not columns[x_name]:
            continue
        same = [name for name, values in columns.items() if name != x_name and len(set(values)) == 1]
        changing = {name: values for name, values in columns.items() if name not in same}
        body += titled(title, _charts(x_name, changing))
        if same:
            constants = ", ".join(f"{name} {columns[name][0]:g}" for name in same)
            body += paragraphs([f"The same at every step: {constants}."])
    return section("Training curves", _CURVES, body, "curves") if body else None


def watched(files: Mapping[str, tuple[Path, Path]]) -> Section | None:
    """The student's scores while it trained, from watched.csv and watched_parses.csv of each stage: a chart a
    scorer and suite, and of the world's suites a chart a tag; None where no stage was watched."""
    drawn = {}
    for title, (scores, parses) in files.items():
        drawn[title] = _charts(*read_curves(scores)) + _charts(*strict_by_tag(parses))
    return _by_stage("Watched while training", _WATCHED, drawn, "watched")


def image_log(files: Mapping[str, tuple[Path, str]]) -> Section | None:
    """Panels of each stage from its image_log.zip, beside which stands what its steps are called; None where no panel
    was drawn."""
    shown: dict[str, list[Markup]] = {}
    for title, (path, unit) in files.items():
        shown[title] = []
        for number, panel in panels(path):
            after = f"{title} after {number} {unit}s"
            text = f"{after}: generator, teacher and fake score"
            shown[title].append(picture(panel, text, PANEL_BYTES, after))
    return _by_stage("Image log", _LOG, shown, "image-log", kind="panels")


def _by_stage(
    title: str, how: str, parts: Mapping[str, Sequence[Markup]], anchor: str, kind: str = "curves"
) -> Section | None:
    """A section with the charts or pictures of each stage below its name."""
    body = Markup().join(titled(stage, own, kind) for stage, own in parts.items() if own)
    return section(title, how, body, anchor) if body else None


def _charts(x_name: str, columns: Columns) -> list[Markup]:
    """Every column of `read_curves` over the first, where it has two points."""
    points = {name: _finite(columns[x_name], y) for name, y in columns.items() if name != x_name}
    return [curve(name, *both, x_name) for name, both in points.items() if len(both[0]) > 1]


def _finite(x: Sequence[float | None], y: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The points where both are known."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]


def read_curves(path: Path) -> tuple[str, Columns]:
    """Name of the first column, and all columns of numbers (None for an empty field). UserError for anything else."""
    names, rows = read_table(path, AGAIN)
    columns: Columns = {}
    try:
        for name in names:
            columns[name] = [float(row[name]) if row[name] else None for row in rows]
    except ValueError as error:
        raise UserError(f"{path}: a field is not a number ({error}); {AGAIN}") from error
    return names[0], columns


def strict_by_tag(path: Path) -> tuple[str, Columns]:
    """Of watched_parses.csv, in the form of `read_curves`: the share of right images of each suite and tag over
    time. UserError where a line is no record of an image."""
    (unit, *_), lines = read_table(path, AGAIN)
    found: dict[str, dict[float, list[int]]] = {}
    try:
        for line in lines:
            name = f"{line['suite']}/{line['tag']} strict"
            found.setdefault(name, {}).setdefault(float(line[unit]), []).append(int(line["strict"]))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: a line is no record of an image ({error}); {AGAIN}") from error
    steps = sorted({step for own in found.values() for step in own})
    columns: Columns = {unit: [float(step) for step in steps]}
    for name in in_order(found, [f"{suite}/{tag} strict" for suite in _suites(found) for tag in TAGS]):
        shares = {step: sum(right) / len(right) for step, right in found[name].items()}
        columns[name] = [shares.get(step) for step in steps]
    return unit, columns


def _suites(names: Mapping[str, object]) -> list[str]:
    """The suites of names like "suite/tag strict"."""
    return list(dict.fromkeys(name.partition("/")[0] for name in names))


def panels(path: Path) -> Iterator[tuple[int, Image.Image]]:
    """Step and picture of up to PANELS panels of an image_log.zip, as small as the page shows them. UserError where it
    is no such archive."""
    try:
        with zipfile.ZipFile(path) as log:
            names = sorted(log.namelist())
            for name in evenly(names, PANELS):
                number = re.fullmatch(r"image-log-(\d+)\.png", name)
                if number is None:
                    raise UserError(f"{path}: {name} is not a panel; {AGAIN}")
                with Image.open(io.BytesIO(log.read(name))) as panel:
                    yield int(number[1]), _reduced(panel.convert("RGB"))
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: no image log ({error}); {AGAIN}") from error


def evenly(names: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of the names, evenly spread, the last among them."""
    count = min(most, len(names))
    return [names[(i + 1) * len(names) // count - 1] for i in range(count)]


def _reduced(image: Image.Image) -> Image.Image:
    """The image, at most PANEL_WIDTH pixels wide."""
    if image.width <= PANEL_WIDTH:
        return image
    return image.resize((PANEL_WIDTH, round(image.height * PANEL_WIDTH / image.width)), Image.Resampling.LANCZOS)
