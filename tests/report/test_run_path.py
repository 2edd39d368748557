"""The path of a run: which evaluations are points, where they lie, and what stands at its ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtdmd.common.errors import UserError
from rtdmd.evaluate.divergence import divergence
from rtdmd.evaluate.frontier import PATH_REPLICATES
from rtdmd.evaluate.parses import Parses, parses_csv
from rtdmd.report.run_path import LEAST, PathFiles
from tests.evaluate.world_distributions import bank, draw

SEED = 3


def drawn(per_tag: int, beta: float, seed: int) -> Parses:
    """Images of the bank, the right ones weighted by exp(beta)."""
    distribution = bank()
    return draw(distribution, np.exp(beta * distribution.right), per_tag, np.random.default_rng(seed))


def judged(reward: float) -> dict[str, Any]:
    """A model's figures, as far as a point has them."""
    return {name: {"mean": reward, "ci95": 0.01} for name in ("reward", "kl", "optimum", "excess")}


METRICS = {"frontier": {"models": {"train_acdmd": judged(0.4), "train_rtdmd": judged(0.9)}}}


def write(folder: Path, students: Mapping[int, Parses], distribution: Parses) -> tuple[Path, Path]:
    """watched_parses.csv and parses.csv, by the writer of the latter."""
    (folder / "parses.csv").write_text(parses_csv({"own": {"teacher_law": distribution}}))
    lines = ["epoch,suite,prompt_id,index,tag,strict,background,cells"]
    for epoch, parses in students.items():
        records = parses_csv({"own": {"student": parses}}).splitlines()[1:]
        lines += [line.replace("own,student,", f"{epoch},own,") for line in records]
    (folder / "watched_parses.csv").write_text("\n".join(lines) + "\n")
    return folder / "watched_parses.csv", folder / "parses.csv"


def test_looks_between_the_two_models_are_points_with_their_divergence(tmp_path: Path) -> None:
    distribution = drawn(60, 0.0, 1)
    students = {0: drawn(30, 0.0, 2), 10: drawn(30, 0.5, 3), 20: drawn(30, 1.3, 4), 30: drawn(10, 1.3, 5)}
    files = write(tmp_path, students, distribution)
    found = PathFiles(*files, SEED, 40).path("own", METRICS)
    assert [point["epoch"] for point in found] == [0, 10, 20, 40]
    assert (found[0]["reward"], found[-1]["kl"], found[-1]["excess_ci95"]) == (0.4, 0.9, 0.01)
    assert len(students[20]) >= LEAST > len(students[30])
    own = divergence(students[20], distribution, SEED, PATH_REPLICATES)
    assert all(found[2][name] == own[name]["mean"] for name in ("reward", "kl", "optimum", "excess"))
    assert found[2]["reward_ci95"] == own["reward"]["ci95"]
    chosen = PathFiles(*files, SEED, None).path("own", METRICS)
    assert [point["epoch"] for point in chosen] == [0, 10, 20]


def test_there_is_no_path_without_looks_of_these_prompts(tmp_path: Path) -> None:
    distribution = drawn(60, 0.0, 1)
    files = write(tmp_path, {10: drawn(30, 0.5, 3)}, distribution.rows(distribution.prompts > 3))
    assert PathFiles(*files, SEED, 40).path("own", METRICS) == []
    assert PathFiles(*files, SEED, 40).path("another", METRICS) == []
    files[0].write_text(files[0].read_text().replace(",own,", ",own,x", 1))
    with pytest.raises(
        UserError, match=r"watched_parses\.csv: no record of an image: 10,own,x.*`rtdmd train_rtdmd` writes"
    ):
        PathFiles(*files, SEED, 40).path("own", METRICS)
