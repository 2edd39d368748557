"""A few faults of docs/evidence/faults.md, under the real engines, end in the bytes of an undisturbed run.

The long versions are `python -m tests.workflow.faults` and `python -m tests.workflow.kills`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.workflow.checkout import copy
from tests.workflow.faults import DVC, FAULTS, SNAKEMAKE, Fault, full_disk, trial, two_at_once
from tests.workflow.kills import draw
from tests.workflow.undisturbed import hashes

REPOSITORY = Path(__file__).parents[2]
SHORT = [
    ("params.yaml is no text", SNAKEMAKE),
    ("teacher missing", DVC),
    ("cached result truncated", "rtdmd recover"),
    ("rwlock names another process", DVC),
]


def test_the_document_names_every_fault_and_its_next_command() -> None:
    text = (REPOSITORY / "docs/evidence/faults.md").read_text()
    for fault in FAULTS:
        assert f"| {fault.name} |" in text, fault.name
        for command in fault.mend.split(" && ")[:-1]:
            assert f"`{command}`" in text, command


@pytest.mark.parametrize(("name", "command"), SHORT)
def test_a_fault_is_named_and_mended(name: str, command: str, finished: Path, tmp_path: Path) -> None:
    fault: Fault = next(fault for fault in FAULTS if (fault.name, fault.meets) == (name, command))
    assert not trial(fault, copy(finished, tmp_path / "run"), hashes(finished))


@pytest.mark.skipif(
    os.geteuid() != 0, reason="mounting a small disk needs root: `sudo .venv/bin/pytest tests/workflow`"
)
def test_a_full_disk_is_named_and_loses_nothing(finished: Path, tmp_path: Path) -> None:
    assert not full_disk("report", DVC, finished, tmp_path / "disk", hashes(finished))


def test_a_second_run_is_refused_and_the_first_ends_as_ever(finished: Path, tmp_path: Path) -> None:
    assert not two_at_once(SNAKEMAKE, DVC, finished, tmp_path / "run", hashes(finished))


def test_the_kills_of_a_seed_are_always_the_same() -> None:
    kills = draw(0, 20, 25.0)
    assert kills == draw(0, 20, 25.0)
    assert {kill.what for kill in kills} == {"all", "engine", "stage"}
    assert all(0.5 <= kill.seconds <= 25 for kill in kills)
