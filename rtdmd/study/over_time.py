"""Training rewards beside held-out figures over a stage-two run: where the first rise and the others fall, a reward is
over-optimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from rtdmd.evaluate.names import score_label
from rtdmd.report.charts import curve
from rtdmd.report.html import Section, details, section, table
from rtdmd.study.gather import HEADLINE, Row, Run, is_reward, reward_names, title_of

LABELS = {
    "frechet": "Fréchet",
    "diversity": "Diversity",
    "clutter": "Images with clutter",
    "kl": "Divergence",
    "excess": "Excess divergence",
}
_HOW = (
    "Means over seeds. Training rewards: the first and the last quarter of the epochs. Held-out figures: the first and"
    " the last student that was judged, averaged weights, few images. Below, the curves of the first seed: training"
    " rewards, the automatic stop's validation, the held-out figures. A training reward that rises while held-out"
    " figures stand or fall, or while the Fréchet distance rises and diversity falls, is over-optimised. The last"
    " column: which epoch's student the automatic stop chose for each seed, and the strict score of its choices (the"
    " tables above are of the last students)."
)


def figure_label(name: str) -> str:
    return LABELS.get(name, score_label(name))


def time_section(rows: Sequence[Row]) -> Section:
    """A table of first and last figures of each method, and its curves."""
    rewards = reward_names(rows)
    figures = list(dict.fromkeys(name for row in rows for run in row.runs for name in judged(run)))
    header = ["Method", *(name.replace("reward_", "training ") for name in rewards)]
    header += [*(f"held-out {LABELS.get(name, name)}" for name in figures), f"kept epoch, of the last: {HEADLINE}"]
    lines = []
    for row in rows:
        cells = [title_of(row.name)]
        for name in rewards:
            cells.append(change([ends(run.curves[name]) for run in row.runs if name in run.curves]))
        for name in figures:
            cells.append(change([judged(run)[name] for run in row.runs if name in judged(run)]))
        chosen = ", ".join(str(run.record["chosen"]) for run in row.runs)
        kept = np.mean([run.kept[HEADLINE] for run in row.runs])
        lines.append([*cells, f"{chosen} of {row.runs[0].record['length']}: {kept:.3f}"])
    body = table(header, lines)
    for row in rows:
        charts = Markup().join(reward_charts(row.runs[0]) + history_charts(row.runs[0]))
        body += details(title_of(row.name), Markup('<div class="curves">{}</div>').format(charts))
    return section("Over time", _HOW, body, "time")


def ends(values: Sequence[float | None]) -> tuple[float, float]:
    """Means of the first and of the last quarter of a curve (one value at least)."""
    known = [value for value in values if value is not None]
    part = max(1, len(known) // 4)
    return float(np.mean(known[:part])), float(np.mean(known[-part:]))


def judged(run: Run) -> dict[str, tuple[float, float]]:
    """Held-out figures of the first and of the last student that was judged; none where only one was."""
    history = run.record["history"]
    if len(history) < 2:
        return {}
    return {name: (history[0][name], history[-1][name]) for name in history[0] if name != "epoch"}


def change(pairs: Sequence[tuple[float, float]]) -> str:
    """Means over seeds as "first → last"."""
    if not pairs:
        return "–"
    first, last = np.mean(pairs, axis=0)
    return f"{first:.3f} → {last:.3f}"


def reward_charts(run: Run) -> list[Markup]:
    """Training rewards, and the validation's figures where there were validations."""
    x_name = next(iter(run.curves))
    charts = list[Markup]()
    for name, values in run.curves.items():
        if is_reward(name) or (name.startswith("validation_") and name != "validation_best"):
            points = [
                (x, y) for x, y in zip(run.curves[x_name], values, strict=True) if x is not None and y is not None
            ]
            if len(points) > 1:
                x = [point[0] for point in points]
                y = [point[1] for point in points]
                charts.append(curve(name.replace("_", " "), x, y, x_name))
    return charts


def history_charts(run: Run) -> list[Markup]:
    """Held-out figures of the kept checkpoints."""
    history = run.record["history"]
    x = [point["epoch"] for point in history]
    charts = []
    for name in judged(run):
        values = [point[name] for point in history]
        charts.append(curve(f"held-out {LABELS.get(name, name)}", x, values, "epoch"))
    return charts
