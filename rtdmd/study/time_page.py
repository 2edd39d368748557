"""Tables and plots of time to reward: CSV, Markdown, a picture per stage, and a section of the comparison's page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np
from markupsafe import Markup

from rtdmd.common.files import write_atomic
from rtdmd.config import Params
from rtdmd.evaluate.tables import csv_text
from rtdmd.methods._card import STAGE_TITLES
from rtdmd.report.bands import Band, band_plot
from rtdmd.report.html import Section, drawing, section, table
from rtdmd.study.gather import title_of
from rtdmd.study.plan import TIME_FILES, SweepPlan, stage_of
from rtdmd.study.time_to_reward import UNITS, Line, Track, lines_of, share_of, tracks_of

SVG = '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" '  # what a picture of its own needs
FIGURES = {"updates": 0, "passes": 0, "seconds": 0, "excess": 3}  # and their digits in a table
AXES = "strict score over thousand passes of the transformer, forward and backward"
_HOW = (
    "When each run's student scored a level, on captions that are neither trained on nor held out: between the last"
    " evaluation below it and the first of two in a row at or above it, on a straight line. Mean over the seeds that"
    " reached it, and their range. Passes: images through the transformer, forward and backward; seconds: of the clock,"
    " on the machine that trained. Evaluations count in neither. Excess: the divergence above the known optimum there,"
    " in nats an image. Share: of the passes of the method that it is compared with, mean over seeds; where that one"
    " did not reach the level what its run had spent stands for what it needs, and the share is less than said."
)


def write_time(root: Path, plan: SweepPlan, base: Params) -> Section | None:
    """The files of the plan's time to reward in its page's folder; returns the page's section, None where the plan
    does not ask for it."""
    asked = plan.time_to_reward
    if asked is None:
        return None
    tracks = tracks_of(root, plan, base, asked.suite)
    lines = lines_of(root, plan, asked, tracks)
    out = root / plan.page
    texts = (table_csv(lines, asked.against), runs_csv(lines), curves_csv(tracks), markdown(lines, asked.against))
    for name, text in zip(TIME_FILES, texts, strict=True):
        write_atomic(out / name, text)
    body = Markup()
    for stage, group in groupby(lines, attrgetter("stage")):
        own = list(group)
        picture = plot(own, [track for track in tracks if stage_of(track.name) == stage])
        write_atomic(out / f"time_to_reward_{stage}.svg", str(picture).replace("<svg ", SVG, 1) + "\n")
        body += Markup("<h3>{}</h3>").format(STAGE_TITLES[stage].capitalize())
        body += drawing(picture) + table(header(stage), rows(own, asked.against))
    return section("Time to reward", _HOW, body, "time-to-reward") if body else None


def header(stage: str) -> list[str]:
    names = [f"{UNITS[stage]}s", "passes", "seconds", "excess divergence"]
    return ["method", "strict score", "reached", *names, "share of passes"]


def rows(lines: Sequence[Line], against: Sequence[str]) -> list[list[str]]:
    out = []
    for line in lines:
        scores = sorted(run.level for run in line.runs)
        level = f"{scores[0]:.2f}" if scores[0] == scores[-1] else f"{line.label}: {spread(scores, 3)}"
        count = len(line.values("passes"))
        limit = f"not reached in {length(line):,.0f} {UNITS[line.stage]}s"
        reached = f"{count} of {len(line.runs)} seeds"
        if 0 < count < len(line.runs):
            reached = f"{reached}, others {limit}"
        cells = [title_of(line.name), level, reached]
        cells += [spread(line.values(figure), digits) for figure, digits in FIGURES.items()]
        if count == 0:
            cells[3] = limit
        out.append([*cells, share_text(line, lines, against)])
    return out


def length(line: Line) -> float:
    """Updates of the longest run, as far as they tell."""
    return max(run.last["updates"] for run in line.runs)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and range of one value a seed."""
    if not values:
        return "–"
    low, mean, high = (f"{value:,.{digits}f}" for value in (min(values), np.mean(values), max(values)))
    return f"{mean} ({low} to {high})" if len(values) > 1 else mean


def share(line: Line, lines: Sequence[Line], against: Sequence[str]) -> tuple[float, bool] | None:
    """`share_of` the method of its stage that the plan compares with, at the same level; None for that one itself."""
    if line.name in against:
        return None
    own = (line.stage, line.label)
    others = [other for other in lines if other.name in against and (other.stage, other.label) == own]
    return share_of(line, others[0]) if others else None


def share_text(line: Line, lines: Sequence[Line], against: Sequence[str]) -> str:
    found = share(line, lines, against)
    if found is None:
        return "–"
    return f"{found[0]:.2f}" if found[1] else f"less than {found[0]:.2f}"


def markdown(lines: Sequence[Line], against: Sequence[str]) -> str:
    """A table a stage."""
    parts = []
    for stage, own in groupby(lines, attrgetter("stage")):
        head = header(stage)
        body = [head, ["---"] * len(head), *rows(list(own), against)]
        parts.append(f"### {STAGE_TITLES[stage].capitalize()}\n")
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in body) + "\n")
    return "\n".join([*parts, _HOW]) + "\n"


def table_csv(lines: Sequence[Line], against: Sequence[str]) -> str:
    """One line per method and level; ``share_is``: exact, or less where the share is a bound."""
    head = ["run", "stage", "level", "score", "seeds", "reached", "length"]
    head += [f"{figure}{end}" for figure in FIGURES for end in ("", "_low", "_high")]
    body: list[list[object]] = []
    for line in lines:
        scores = [run.level for run in line.runs]
        cells: list[object] = [line.name, line.stage, line.label, float(np.mean(scores)), len(scores)]
        cells += [len(line.values("passes")), length(line)]
        for figure in FIGURES:
            values = line.values(figure)
            cells += [float(np.mean(values)), min(values), max(values)] if values else [None, None, None]
        found = share(line, lines, against)
        cells += [None, None] if found is None else [found[0], "exact" if found[1] else "less"]
        body.append(cells)
    return csv_text([*head, "share", "share_is"], body)


def runs_csv(lines: Sequence[Line]) -> str:
    """One line per run and level, with what the run took to its end, or to the last point below a level not reached."""
    last = ("updates", "passes", "seconds")
    body: list[list[object]] = []
    for line in lines:
        for run in line.runs:
            found = run.found or {}
            figures = [found.get(figure) for figure in FIGURES]
            body.append([line.name, run.seed, line.label, run.level, *figures, *(run.last[name] for name in last)])
    return csv_text(["run", "seed", "level", "score", *FIGURES, *(f"last_{name}" for name in last)], body)


def curves_csv(tracks: Sequence[Track]) -> str:
    """One line per evaluation."""
    body: list[list[object]] = []
    for track in tracks:
        columns = (track.updates.tolist(), track.passes.tolist(), track.seconds.tolist(), track.strict.tolist())
        body += [[track.name, track.seed, *values] for values in zip(*columns, strict=True)]
    return csv_text(["run", "seed", "updates", "passes", "seconds", "strict"], body)


def plot(lines: Sequence[Line], tracks: Sequence[Track]) -> Markup:
    """The scores of one stage's methods over their passes: mean and range over seeds, evaluation by evaluation."""
    bands = {}
    for name in dict.fromkeys(track.name for track in tracks):
        own = [track for track in tracks if track.name == name]
        strict = np.stack([track.strict for track in own])
        passes = np.stack([track.passes for track in own]).mean(0) / 1000
        bands[name] = Band(passes.tolist(), strict.mean(0).tolist(), strict.min(0).tolist(), strict.max(0).tolist())
    levels = {}
    for line in lines:
        levels[line.label] = float(np.mean([run.level for run in line.runs]))
    return band_plot(bands, {name: title_of(name) for name in bands}, levels, AXES)
