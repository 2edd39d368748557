"""Both engines say the same of what is up to date, after every kind of change and whichever of them ran last."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from typing import Any

import pytest
import yaml

from tests.workflow.agreement import CHANGES, SECTIONS, Change, set_param
from tests.workflow.checkout import copy, environment, run

NOTHING = {"snakemake": "Nothing to be done", "dvc": "up to date"}
RUN = {"snakemake": ("snakemake", "--cores", "1"), "dvc": ("dvc", "repro")}


def nothing_to_do(root: Path) -> bool:
    """True when Snakemake and DVC both say so."""
    dry, status = run(root, "snakemake", "--dry-run", "--cores", "1"), run(root, "dvc", "status")
    return NOTHING["snakemake"] in dry and NOTHING["dvc"] in status


def edit_params(root: Path, key: str, value: Any) -> None:
    path = root / "params.yaml"
    path.write_text(set_param(key, value)(path.read_text()))


@pytest.fixture(scope="module")
def matrix(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """Row by row what both engines would run."""
    root = copy(finished, tmp_path_factory.mktemp("matrix") / "checkout")
    said = run(root, sys.executable, "-m", "tests.workflow.agreement", ".", "--json")
    rows = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return {row.pop("change"): row for row in rows}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.title)
def test_both_engines_name_the_stages_that_the_change_reaches(change: Change, matrix: dict[str, Any]) -> None:
    row = matrix[change.title]
    assert row["dvc"] == row["expected"]
    assert row["snakemake"] == row["expected"]
    assert bool(row["expected"]) is (bool(change.files) or bool(change.params)) or change.params == "publish.private"


def test_every_section_of_params_is_changed_once() -> None:
    sections = yaml.safe_load(Path("params.yaml").read_text())
    assert {key.split(".")[0] for key in SECTIONS} == set(sections)


def test_a_finished_run_leaves_nothing_to_either_engine(finished: Path, tmp_path: Path) -> None:
    root = copy(finished, tmp_path / "checkout")
    lock = (root / "dvc.lock").read_bytes()
    said = run(root, "dvc", "repro")
    assert NOTHING["dvc"] in said and "Running stage" not in said
    assert NOTHING["snakemake"] in run(root, "snakemake", "--cores", "1")
    assert (root / "dvc.lock").read_bytes() == lock


def test_the_engines_take_turns(finished: Path, tmp_path: Path) -> None:
    """Each sees what the other did, under a clock that is a day behind the files; a setting put back brings its results
    back from the cache. The folder and the environment's have a space and an apostrophe in their names."""
    root = copy(finished, tmp_path / "somebody's checkout")
    (root / ".venv").symlink_to(sys.prefix)
    python = str(root / ".venv/bin/python")
    turns = {"snakemake": (python, "-m", "snakemake", "--cores", "1"), "dvc": (python, "-m", "dvc", "repro")}
    page = (root / "results/report/index.html").read_bytes()
    tomorrow = time.time() + 86_400
    for engine, title in (("dvc", "one"), ("snakemake", "two"), ("dvc", "RTDMD smoke run")):
        edit_params(root, "report.title", title)
        for pattern in ("results/**/*", "benchmarks/*", "rtdmd/**/*.py", "data/**/*"):
            for path in root.glob(pattern):
                os.utime(path, (tomorrow, tomorrow))
        run(root, *turns[engine])
        assert f"<title>{title}</title>" in (root / "results/report/index.html").read_text()
        assert nothing_to_do(root), f"after {engine}"
    assert (root / "results/report/index.html").read_bytes() == page


@pytest.mark.parametrize("engine", ["snakemake", "dvc"])
def test_settings_edited_during_a_run_are_not_recorded(engine: str, finished: Path, tmp_path: Path) -> None:
    """DVC would note the settings at the end of the run, which are not those that made the results."""
    root = copy(finished, tmp_path / "checkout")
    lock = (root / "dvc.lock").read_bytes()
    edit_params(root, "evaluate.batch_size", 24)
    program = Popen(RUN[engine], cwd=root, env=environment(root), stdout=PIPE, stderr=STDOUT, text=True)
    while not list(root.glob("results/evaluate/.partial-*")):  # the stage has read its settings
        assert program.poll() is None, program.communicate()[0]
        time.sleep(0.05)
    edit_params(root, "evaluate.batch_size", 6)
    said = program.communicate()[0]
    assert program.returncode != 0
    assert "params.yaml changed during the run (evaluate); nothing was written, run evaluate again" in said
    assert (root / "dvc.lock").read_bytes() == lock
    edit_params(root, "evaluate.batch_size", 12)
    run(root, *RUN[engine])
    assert (root / "dvc.lock").read_bytes() == lock
    assert nothing_to_do(root)
