"""The comparison's frontier plots: each method's reward against its divergence from the teacher, and the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rtdmd.common.sums import sum_in_order
from rtdmd.methods._card import STAGE_TITLES
from rtdmd.report.against_teacher import at_bound
from rtdmd.report.charts import OTHER
from rtdmd.report.frontier import frontier_plot, model_colors
from rtdmd.report.html import Section, drawing, section
from rtdmd.study.divergences import TeacherDistribution
from rtdmd.study.gather import BASE, Row, seed_mean
from rtdmd.study.plan import TEACHER

_HOW = (
    "Each method's reward and its divergence from the teacher, means over seeds, beside the known optimum (of the first"
    " seed's teacher): no distribution has its reward at less divergence. The dotted line is the excess, in the table's"
    " column too; bars are 95 % intervals over seeds, of one seed over noise. Small dots on a thin line: the students"
    " of the first seed's run in the order of its epochs, of the methods that have a colour."
)


def frontier_section(rows: Sequence[Row], stage: str, distribution: TeacherDistribution | None) -> Section | None:
    """The plot of one stage with teacher and base; None where no divergence was measured."""
    measured = {row.name: row for row in rows if row.stage == stage or row.name in (TEACHER, BASE)}
    measured = {name: row for name, row in measured.items() if any(run.divergence for run in row.runs)}
    if distribution is None or not set(measured) - {TEACHER, BASE}:
        return None
    models = {name: point(row) for name, row in measured.items()}
    colors = model_colors(list(models))
    paths = {name: row.runs[0].path for name, row in measured.items() if row.runs[0].path and colors[name] != OTHER}
    lowest = min(own["reward"]["mean"] for own in models.values())
    data = {"models": models, "optimum": distribution.curve(lowest), "paths": paths}
    title = f"{STAGE_TITLES[stage].capitalize()}: reward against divergence"
    shares = {name: own["at_bound"] for name, own in models.items() if own["at_bound"] > 0}
    plot = drawing(frontier_plot(data, {name: name for name in models}))
    return section(title, _HOW + at_bound(shares), plot, f"frontier-{stage}")


def point(row: Row) -> dict[str, Any]:
    """A method's figures as the plot reads them, and the share of its images at the bound, means over its seeds."""
    known = [run.divergence for run in row.runs if run.divergence]
    out: dict[str, Any] = {"at_bound": sum_in_order(found["at_bound"] for found in known) / len(known)}
    for name in ("reward", "kl", "optimum", "excess"):
        mean = seed_mean([found[name]["mean"] for found in known], [found[name]["ci95"] for found in known])
        out[name] = {"mean": mean.mean, "ci95": mean.noise if mean.seeds is None else mean.seeds}
    return out
