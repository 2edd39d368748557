"""The path of a run in the frontier plot: its students on the way, from what the verifier read in their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from rtdmd.common.parsing import read_table
from rtdmd.evaluate.frontier import path_points, plot_point
from rtdmd.evaluate.names import STUDENT, TEACHER_DISTRIBUTION
from rtdmd.evaluate.parses import parses_from, read_parses

AGAIN = "`rtdmd train_rtdmd` writes results/train_rtdmd/watched_parses.csv"
LEAST = 150  # images of an evaluation: of fewer the divergence is mostly noise, and no path is drawn


def read_watched_parses(path: Path, suite: str, again: str) -> dict[int, list[dict[str, str]]]:
    """The lines of a stage's watched_parses.csv on one suite, by the updates before each evaluation. UserError with
    ``again``, what makes it anew, where it is no table."""
    (unit, *_), lines = read_table(path, again)
    found: dict[int, list[dict[str, str]]] = {}
    for line in lines:
        if line["suite"] == suite:
            found.setdefault(int(line[unit]), []).append(line)
    return found


@dataclass(frozen=True)
class PathFiles:
    """The files behind the path: watched_parses.csv of stage two and parses.csv of the evaluation; the seed of the
    intervals, and the epochs after which the student was kept that it has (None where a validation chose it)."""

    watched: Path
    parses: Path
    seed: int
    epochs: int | None

    def path(self, suite: str, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The points of stage two on a suite whose section of metrics.json is ``metrics``, by epoch: those between
        its models of stage one and stage two, which were judged on more images, and these at the ends where they are
        there. [] where no evaluation on this suite, on prompts of the teacher's distribution, has LEAST images.

        UserError where watched_parses.csv or parses.csv is damaged.
        """
        lines = read_watched_parses(self.watched, suite, AGAIN)
        ends = {0: "train_acdmd"} | ({} if self.epochs is None else {self.epochs: STUDENT})
        judged = metrics["frontier"]["models"]
        known = {epoch: name for epoch, name in ends.items() if name in judged}
        between = {epoch: own for epoch, own in lines.items() if epoch not in known and len(own) >= LEAST}
        if not between:
            return []
        distribution = read_parses(self.parses, suite, TEACHER_DISTRIBUTION)
        students = {epoch: parses_from(own, self.watched, AGAIN) for epoch, own in between.items()}
        if not all(np.isin(student.prompts, distribution.prompts).all() for student in students.values()):
            return []
        points = [{"epoch": epoch} | plot_point(judged[name]) for epoch, name in known.items()]
        return sorted(points + path_points(students, distribution, self.seed), key=itemgetter("epoch"))
