"""How far each run's student is from its seed's teacher: the parses that runs left, against the teacher run's
distribution.

The teacher is drawn once a seed, by the run `teacher`; no other run draws it again (`plan.run_params`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdmd.common.files import read_json
from rtdmd.evaluate.divergence import caption_weights, divergence, teacher_optimum
from rtdmd.evaluate.frontier import optimum_curve, path_points
from rtdmd.evaluate.names import TEACHER_DISTRIBUTION, suites_of
from rtdmd.evaluate.parses import Parses, read_parses
from rtdmd.study.plan import TEACHER, SweepPlan, run_folder

PARSES = Path("results/evaluate/parses.csv")
METRICS = Path("results/evaluate/metrics.json")


@dataclass(frozen=True)
class TeacherDistribution:
    """The teacher of a seed: its images of other noise than the plan's, and those of the plan, on a suite."""

    suite: str
    distribution: Parses
    own: Parses
    seed: int

    def divergence(self, folder: Path, model: str) -> dict[str, Any]:
        """`divergence` of the model that was judged in ``folder``. UserError where its parses are missing."""
        return divergence(read_parses(folder / PARSES, self.suite, model), self.distribution, self.seed)

    def path(self, folders: Mapping[int, Path], model: str) -> list[dict[str, float]]:
        """`frontier`'s points of a run's students by epoch, each judged in a folder."""
        students = {epoch: read_parses(place / PARSES, self.suite, model) for epoch, place in folders.items()}
        return path_points(students, self.distribution, self.seed)

    def curve(self, lowest: float) -> list[dict[str, float]]:
        """The optimum from the reward ``lowest`` on."""
        return optimum_curve(teacher_optimum(self.distribution, caption_weights(self.own)), lowest)


def teacher_distribution(
    root: Path, plan: SweepPlan, seed: int, suite: str | None = None
) -> TeacherDistribution | None:
    """The seed's distribution on a suite (None: the first); None where its teacher is not judged there yet, or its
    images are none that the verifier reads."""
    folder = run_folder(root, plan, TEACHER, seed)
    if not (folder / METRICS).is_file():
        return None
    suites = suites_of(read_json(folder / METRICS))
    suite = suite or next(iter(suites))
    if "frontier" not in suites.get(suite, {}):
        return None
    distribution, own = (read_parses(folder / PARSES, suite, model) for model in (TEACHER_DISTRIBUTION, TEACHER))
    return TeacherDistribution(suite, distribution, own, seed)
