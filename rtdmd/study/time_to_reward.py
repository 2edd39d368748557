"""Time to reward: the updates, transformer passes and seconds after which a run's student scores a level.

A run is watched while it trains (section `watch` of both stages): its EMA student is evaluated on always the same
prompts and noise, on captions that are neither trained on nor held out. A level is **reached** between the last
evaluation below it and the first of two in a row at or above it, so that one lucky evaluation reaches nothing;
where between them, a straight line says. What came at the last evaluation alone is not reached.

Passes are those that the algorithm needs of the transformer, forward and backward (`rtdmd.plan.budget.update_counts`),
less those that the policy pass left out because an image's advantage was 0. Seconds are the wall seconds of the run's
journal. Neither counts the evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json
from rtdmd.config import Params
from rtdmd.evaluate.divergence import divergence
from rtdmd.evaluate.frontier import PATH_REPLICATES
from rtdmd.evaluate.intervals import estimate
from rtdmd.evaluate.names import suites_of
from rtdmd.evaluate.parses import Parses, parses_from
from rtdmd.pipeline.stage import RESOLVED
from rtdmd.pipeline.stage import run_folder as training_folder
from rtdmd.plan.budget import update_counts
from rtdmd.report.run_path import read_watched_parses
from rtdmd.study.divergences import METRICS, TeacherDistribution, teacher_distribution
from rtdmd.study.plan import BASE, TEACHER, SweepPlan, TimeToReward, run_folder, run_params, stage_of
from rtdmd.study.run import DONE
from rtdmd.train.engine.checkpoint import JOURNAL
from rtdmd.train.engine.journal import Journal

FEW_STEPS = "teacher_few_step"
UNITS = {"train_acdmd": "iteration", "train_rtdmd": "epoch"}


@dataclass(frozen=True)
class Track:
    """One run at its L evaluations, the first before the first update.

    updates, strict, passes, seconds: (L,), what had been done and spent, and the score; parses: what the verifier
    read in the images of each.
    """

    name: str
    seed: int
    updates: np.ndarray
    strict: np.ndarray
    passes: np.ndarray
    seconds: np.ndarray
    parses: Sequence[Parses]

    def at(self, place: float) -> dict[str, float]:
        """Updates, passes and seconds at a place among the evaluations, 0 to L - 1, on straight lines."""
        columns = {"updates": self.updates, "passes": self.passes, "seconds": self.seconds}
        index = np.arange(len(self.strict))
        return {name: float(np.interp(place, index, values)) for name, values in columns.items()}


@dataclass(frozen=True)
class Reached:
    """When one run reached one level: ``found`` has updates, passes, seconds and, where the teacher's distribution is
    known, the excess divergence; None where the run ended before. ``last``: the first three at the run's last
    evaluation, or at the last one below the level where it was not reached: it needs more than that."""

    seed: int
    level: float
    found: Mapping[str, float] | None
    last: Mapping[str, float]


@dataclass(frozen=True)
class Line:
    """A method and a level, over seeds."""

    name: str
    label: str  # of the level
    runs: Sequence[Reached]

    @property
    def stage(self) -> str:
        return stage_of(self.name)

    def values(self, figure: str) -> list[float]:
        """Of the runs that reached the level."""
        return [run.found[figure] for run in self.runs if run.found is not None and figure in run.found]


def place_of(strict: np.ndarray, level: float) -> float | None:
    """Where along the evaluations the level is reached (see the module), 0 the first; None where it is not."""
    above = strict >= level
    twice = np.flatnonzero(above[:-1] & above[1:])
    if not len(twice):
        return None
    first = int(twice[0])
    if first == 0:
        return 0.0
    before = strict[first - 1]
    return first - 1 + float((level - before) / (strict[first] - before))


def reach(track: Track, level: float, distribution: TeacherDistribution | None) -> Reached:
    """When the run reached the level. The excess divergence there is that of the evaluations on both sides, on a
    straight line."""
    place = place_of(track.strict, level)
    if place is None:
        below = int(np.flatnonzero(track.strict < level)[-1])
        return Reached(track.seed, level, None, track.at(below))
    found = track.at(place)
    if distribution is not None:
        sides = sorted({int(np.floor(place)), int(np.ceil(place))})
        excess = [
            divergence(track.parses[i], distribution.distribution, distribution.seed, PATH_REPLICATES)["excess"]["mean"]
            for i in sides
        ]
        found["excess"] = float(np.interp(place, sides, excess))
    return Reached(track.seed, level, found, track.at(len(track.strict) - 1))


def spent(journal: Journal, params: Params, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """Transformer passes and seconds after 0 to S updates, (S+1,) each."""
    none, every = (sum(update_counts(params, stage, kept)) for kept in (0.0, 1.0))
    steps = journal.steps()
    passes = [none + step.get("frac_nonzero_advantage", 1.0) * (every - none) for step in steps]
    seconds = [step["machine/seconds"] for step in steps]
    return np.cumsum([0.0, *passes]), np.cumsum([0.0, *seconds])


def read_track(folder: Path, params: Params, run: tuple[str, int], suite: str) -> Track:
    """The run (name, seed) in ``folder``. UserError where it was not watched on the suite, or its journal is gone."""
    name, seed = run
    stage = stage_of(name)
    results = folder / "results" / stage
    path = results / "watched_parses.csv"
    again = f"`rm -r {results}`, then `rtdmd sweep run {name} {seed}` trains it anew"
    lines = read_watched_parses(path, suite, again)
    if len(lines) < 2:
        raise UserError(
            f"{path}: {len(lines)} evaluations on the suite {suite}, which the plan's time_to_reward names; allowed: a"
            f" suite of {stage}.watch.suites, with a watch.every below the length of the run"
        )
    file = training_folder(folder, stage, read_json(results / RESOLVED)) / JOURNAL
    if not file.is_file():
        raise UserError(f"{file}: no such file, and without it the run's cost is unknown; {again}")
    passes, seconds = spent(Journal(file, UNITS[stage], file.read_text(encoding="utf-8").splitlines()), params, stage)
    updates = np.array(sorted(lines))
    parses = [parses_from(lines[number], path, again) for number in updates.tolist()]
    strict = np.array([estimate(one.right, one.prompts.tolist(), one.tags.tolist()).mean for one in parses])
    return Track(name, seed, updates, strict, passes[updates], seconds[updates], parses)


def tracks_of(root: Path, plan: SweepPlan, base: Params, suite: str) -> list[Track]:
    """The runs that are done, method by method; the base is a stage one."""
    found = []
    for name in (BASE, *plan.methods):
        for seed in plan.seeds:
            folder = run_folder(root, plan, name, seed)
            if (folder / DONE).is_file():
                found.append(read_track(folder, run_params(base, plan, name, seed), (name, seed), suite))
    return found


def lines_of(root: Path, plan: SweepPlan, asked: TimeToReward, tracks: Sequence[Track]) -> list[Line]:
    """A line per method and level, those of stage one first. A seed without a judged teacher has no level of stage one,
    and no excess divergence."""
    distributions = {seed: teacher_distribution(root, plan, seed, asked.suite) for seed in plan.seeds}
    scores = {seed: few_step_score(root, plan, seed, asked.suite) for seed in plan.seeds}
    few = {seed: score for seed, score in scores.items() if score is not None}
    levels: dict[str, dict[str, dict[int, float]]] = {  # stage, label, seed
        "train_acdmd": {"the teacher in as few steps": few},
        "train_rtdmd": {f"{level:g}": dict.fromkeys(plan.seeds, level) for level in asked.levels},
    }
    lines = []
    for stage, own in levels.items():
        for name in dict.fromkeys(track.name for track in tracks if stage_of(track.name) == stage):
            for label, by_seed in own.items():
                own_tracks = [track for track in tracks if track.name == name and track.seed in by_seed]
                runs = [reach(track, by_seed[track.seed], distributions[track.seed]) for track in own_tracks]
                if runs:
                    lines.append(Line(name, label, runs))
    return lines


def few_step_score(root: Path, plan: SweepPlan, seed: int, suite: str) -> float | None:
    """The strict score of the seed's teacher in as few steps as the student's; None where it is not judged yet."""
    file = run_folder(root, plan, TEACHER, seed) / METRICS
    if not file.is_file():
        return None
    suites = suites_of(read_json(file))
    if suite not in suites:
        raise UserError(f"{file}: no suite {suite}, which the plan's time_to_reward names; evaluate.suites needs it")
    return float(suites[suite][FEW_STEPS]["strict"]["mean"])


def share_of(line: Line, other: Line) -> tuple[float, bool] | None:
    """The mean over seeds of this line's passes in the other's, and whether that is exact: where the other did not
    reach the level, what its run had spent stands for what it would have needed, and the share is less than that. None
    where this line has a seed that did not reach it, no seed in common, or the other was there before its first update.
    """
    others = {run.seed: run for run in other.runs}
    shared = [run for run in line.runs if run.seed in others]
    if not shared or len(line.values("passes")) < len(line.runs):
        return None
    exact = True
    shares = list[float]()
    for run in shared:
        theirs = others[run.seed]
        exact = exact and theirs.found is not None
        needed = theirs.last if theirs.found is None else theirs.found
        if run.found is None or needed["passes"] == 0:
            return None
        shares.append(run.found["passes"] / needed["passes"])
    return float(np.mean(shares)), exact
