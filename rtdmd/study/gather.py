"""The runs as one table: figures of each, means over seeds, differences paired by seed, with 95 % intervals.

Two intervals are given, for two questions. Over seeds: how far would the figure move with another training run (each
seed is one run; Student's t, so three seeds are wide). Over noise: how far would it move with other images of the same
students (`rtdmd.evaluate.intervals`), which says nothing about training again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json
from rtdmd.common.sums import sum_in_order
from rtdmd.evaluate.names import first_suite, suites_of
from rtdmd.evaluate.pairs import paired_difference
from rtdmd.evaluate.tables import Scores, csv_text, read_scores
from rtdmd.methods import METHODS
from rtdmd.report.over_time import read_curves
from rtdmd.study.divergences import METRICS, TeacherDistribution, teacher_distribution
from rtdmd.study.history import LAST, figures, point_folder
from rtdmd.study.plan import BASE, MODELS, TEACHER, SweepPlan, run_folder, stage_of
from rtdmd.study.run import DONE

TITLES = {TEACHER: "teacher", BASE: "the base: stage one as params.yaml has it"}
REFERENCES = {TEACHER: (), "train_acdmd": ("admd",), "train_rtdmd": (BASE, "matching-only")}
"""Runs that a stage's methods are compared with: in stage one the preset's own settings (γ = 0) at the same budget, in
stage two the student that it starts from and matching alone."""
HEADLINE = "strict"


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; half-widths of 95 % intervals, None where one value says nothing about the spread."""

    mean: float
    seeds: float | None
    noise: float | None
    n: int

    @property
    def sure(self) -> bool:
        """Whether the mean is beyond its interval over seeds, either way."""
        return self.seeds is not None and abs(self.mean) > self.seeds


@dataclass(frozen=True)
class Run:
    """What one run of one seed left."""

    name: str
    seed: int
    record: Mapping[str, Any]
    figures: Mapping[str, float]
    kept: Mapping[str, float]  # of the automatic stop's choice, elsewhere of the last student
    scores: Scores
    curves: Mapping[str, Sequence[float | None]]  # columns of curves.csv of a stage-two run, the epochs first
    divergence: Mapping[str, Any] | None = None  # from the seed's teacher, where its distribution was drawn
    path: Sequence[Mapping[str, float]] = ()  # the same of the run's students by epoch


@dataclass
class Row:
    """One method: its figures over seeds, and each of them less those of its stage's references, by reference."""

    name: str
    stage: str
    runs: list[Run]
    figures: dict[str, Mean] = field(default_factory=dict)
    minus: dict[str, dict[str, Mean]] = field(default_factory=dict)


def seed_mean(values: Sequence[float], noise: Sequence[float | None] = ()) -> Mean:
    """Mean of one value a seed, with Student's t over the seeds; ``noise``: 95 % half-widths of the values themselves,
    of independent images."""
    x = np.asarray(values, dtype=np.float64)
    n = len(values)
    spread = float(stdtrit(n - 1, 0.975) * x.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    known = [width for width in noise if width is not None]
    within = math.sqrt(sum_in_order(width**2 for width in known)) / n if known and len(known) == n else None
    return Mean(float(x.mean()), spread, within, n)


def read_run(root: Path, plan: SweepPlan, name: str, seed: int) -> Run | None:
    """One finished run; None where there is none yet."""
    folder = run_folder(root, plan, name, seed)
    stage = stage_of(name)
    if not (folder / DONE).is_file():
        return None
    model = MODELS[stage][0]
    results = folder / "results"
    judged = judged_folder(folder)
    curves = read_curves(results / stage / "curves.csv")[1] if stage == "train_rtdmd" else {}
    metrics = [read_json(place / METRICS) for place in (judged, folder)]
    own, kept = (figures(first_suite(one)[model]) for one in metrics)
    scores = read_scores(judged / "results/evaluate/scores.csv", model, next(iter(suites_of(metrics[0]))))
    return Run(name, seed, read_json(folder / DONE), own, kept, scores, curves)


def measured(run: Run, folder: Path, distribution: TeacherDistribution | None, over_time: bool) -> Run:
    """The run of ``folder`` with its divergence from its seed's teacher, which becomes two of its figures, kl and
    excess, and where ``over_time`` with those of its students; as it is without a distribution."""
    if distribution is None:
        return run
    model = MODELS[stage_of(run.name)][0]
    found = distribution.divergence(judged_folder(folder), model)
    epochs = [int(point["epoch"]) for point in run.record["history"]] if over_time else []
    path = distribution.path({epoch: point_folder(folder, epoch) for epoch in epochs}, model)
    own = {name: found[name]["mean"] for name in ("kl", "excess")}
    return replace(run, divergence=found, path=path, figures={**run.figures, **own})


def judged_folder(folder: Path) -> Path:
    """Where the student that stands for a run was evaluated: the last one."""
    last = folder / LAST
    return last if (last / METRICS).is_file() else folder


def gather(root: Path, plan: SweepPlan) -> list[Row]:
    """A row for every method of which at least one run is done. UserError where no base run is."""
    distributions = {seed: teacher_distribution(root, plan, seed) for seed in plan.seeds}
    found: dict[str, list[Run]] = {}
    for name in plan.runs():
        done = [run for seed in plan.seeds if (run := read_run(root, plan, name, seed))]
        found[name] = [
            measured(run, run_folder(root, plan, name, run.seed), distributions[run.seed], over_time=run is done[0])
            for run in done
        ]
    if not found[BASE]:
        raise UserError(f"{plan.folder}: no finished run; `snakemake sweep --cores all` makes them")
    rows = []
    for name, runs in found.items():
        if runs:
            row = Row(name, stage_of(name), runs)
            for figure in runs[0].figures:
                if all(figure in run.figures for run in runs):  # a seed's teacher may not be judged yet
                    row.figures[figure] = seed_mean([run.figures[figure] for run in runs])
            for other in references(name):
                against = {figure: difference(runs, found.get(other, []), figure) for figure in row.figures}
                known = {figure: value for figure, value in against.items() if value is not None}
                if known:
                    row.minus[other] = known
            rows.append(row)
    return rows


def references(name: str) -> list[str]:
    """The runs that a run is compared with; the base stands alone, its budget is its own."""
    return [other for other in REFERENCES[stage_of(name)] if BASE != name != other]


def is_reward(name: str) -> bool:
    """Whether a column of the curves is a training reward, the mean of an epoch's images."""
    return name.startswith("reward_")


def reward_names(rows: Sequence[Row]) -> list[str]:
    """The columns of all runs' curves that are training rewards."""
    return list(dict.fromkeys(name for row in rows for run in row.runs for name in run.curves if is_reward(name)))


def difference(runs: Sequence[Run], others: Sequence[Run], figure: str = HEADLINE) -> Mean | None:
    """Mean of runs - others over the seeds that both have. A figure that is a mean of the images' scores is paired
    image by image, on the same prompts and noise; another, of a whole set of images, by seed alone. None without such a
    seed."""
    by_seed = {run.seed: run for run in others}
    pairs = [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]
    if not pairs:
        return None
    if figure not in pairs[0][0].scores.columns:
        return seed_mean([one.figures[figure] - two.figures[figure] for one, two in pairs])
    found = [paired_difference(one.scores, two.scores).overall(figure) for one, two in pairs]
    return seed_mean([value.mean for value in found], [value.ci95 for value in found])


def title_of(name: str) -> str:
    return TITLES[name] if name in TITLES else METHODS[name].title


def table_csv(rows: Sequence[Row]) -> str:
    """One line per method."""
    names = list(dict.fromkeys(figure for row in rows for figure in row.figures))
    header = ["run", "stage", "title", "seeds", "length", "passes", "seconds"]
    header += [column for name in names for column in (name, f"{name}_ci95_seeds")]
    others = sorted({other for own in REFERENCES.values() for other in own})
    for other, name in product(others, names):
        header += [f"{name}_minus_{other}{kind}" for kind in ("", "_ci95_seeds", "_ci95_noise")]
    lines = []
    for row in rows:
        line: list[object] = [row.name, row.stage, title_of(row.name), len(row.runs), *costs(row)]
        for name in names:
            value = row.figures.get(name)
            line += [value and value.mean, value and value.seeds]
        for other, name in product(others, names):
            value = row.minus.get(other, {}).get(name)
            line += [value and value.mean, value and value.seeds, value and value.noise]
        lines.append(line)
    return csv_text(header, lines)


def costs(row: Row) -> tuple[float, float, float]:
    """Mean length, forward passes spent, and wall seconds of the training stage."""
    records = [run.record for run in row.runs]
    seconds = [record["seconds"].get(row.stage, 0.0) for record in records]
    columns = ([record["length"] for record in records], [record["spent"] for record in records], seconds)
    length, passes, time = (float(np.mean(column)) for column in columns)
    return length, round(passes), round(time, 1)


def runs_csv(rows: Sequence[Row]) -> str:
    """One line per run."""
    names = list(dict.fromkeys(figure for row in rows for figure in row.figures))
    rewards = reward_names(rows)
    trained = [f"training_{name.removeprefix('reward_')}" for name in rewards]
    header = ["run", "seed", "length", "chosen", "passes", "seconds", *names, *trained]
    lines: list[list[object]] = []
    for row in rows:
        for run in row.runs:
            record = run.record
            own = [record["length"], record.get("chosen"), record["spent"], record["seconds"].get(row.stage)]
            values = [run.figures.get(name) for name in names] + [run.curves.get(name, [None])[-1] for name in rewards]
            lines.append([row.name, run.seed, *own, *values])
    return csv_text(header, lines)
