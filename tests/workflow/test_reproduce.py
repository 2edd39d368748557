"""`rtdmd reproduce`: what it says when the bytes are others. That those of a whole run are the same is `make smoke`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from rtdmd.cli import main
from tests.workflow.checkout import WHO, commit, git, run

PIPELINE = """
stages:
  train:
    cmd: mkdir -p results && cp $RTDMD_TEST_SOURCE/curves.csv results/curves.csv && echo done > results/log.txt
    deps: [code.txt]
    outs: [results/curves.csv, results/log.txt]
  evaluate:
    cmd: cp $RTDMD_TEST_SOURCE/metrics.json results/metrics.json
    deps: [results/log.txt]
    outs: [results/metrics.json]
"""


def write_machine(folder: Path, loss: float, strict: float) -> None:
    """What a type of machine computes."""
    folder.mkdir(exist_ok=True)
    (folder / "curves.csv").write_text(f"step,loss\n1,{loss}\n")
    scores = {"student": {"strict": {"mean": strict, "ci95": 0.03}}}
    (folder / "metrics.json").write_text(json.dumps({"suites": {"heldout": {"prompts": 6} | scores}}))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stages of a small repository, which is the working directory, get their figures: this machine."""
    root = tmp_path / "repository"
    root.mkdir()
    for name, text in {"dvc.yaml": PIPELINE, "code.txt": "code\n", ".gitignore": "/results/\n"}.items():
        (root / name).write_text(text)
    write_machine(tmp_path / "machine", loss=0.5, strict=0.9)
    monkeypatch.setenv("RTDMD_TEST_SOURCE", str(tmp_path / "machine"))
    git(root, "init", "--quiet")
    run(root, "dvc", "init", "--quiet")
    run(root, "dvc", "repro", "--quiet")
    commit(root, "results")
    monkeypatch.chdir(root)
    return tmp_path / "machine"


def test_other_bytes_are_measured_and_judged(machine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_machine(machine, loss=0.5000001, strict=0.92)
    assert main(["reproduce"]) == 1
    said = capfd.readouterr()
    assert "1 of 3 outputs have the recorded bytes" in said.out
    rows = {line.split("|")[2].strip(): line.split("|")[5].strip() for line in said.out.splitlines() if line[0] == "|"}
    assert rows["results/log.txt"] == "yes"
    assert rows["results/curves.csv"] == "no: max difference 1.0e-07 (row 0 loss)"
    assert rows["results/metrics.json"].startswith(
        "no: within: heldout student strict: 0.9 recorded, 0.92 here, allowed ± 0.042"
    )
    assert said.err.endswith("a fault on the same\n")
    assert main(["reproduce", "--other-machine"]) == 0
    write_machine(machine, loss=0.5, strict=0.95)
    capfd.readouterr()
    assert main(["reproduce", "--other-machine"]) == 1
    said = capfd.readouterr()
    assert "no: OUTSIDE: heldout student strict: 0.9 recorded, 0.95 here" in said.out
    assert "results/metrics.json: not reproduced" in said.err.splitlines()[-1]


def test_only_the_stages_asked_for_and_what_they_need(machine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("code.txt").write_text("not in the commit\n")
    assert main(["reproduce", "train"]) == 0
    said = capfd.readouterr().out
    assert "not in the commit, so not run: code.txt" in said
    assert "2 of 2 outputs have the recorded bytes" in said
    assert main(["reproduce", "trains"]) == 2
    assert "no stage trains; it has train, evaluate" in capfd.readouterr().err
    assert main(["reproduce", "--into", "."]) == 2
    assert "exists; name a new folder" in capfd.readouterr().err


def test_a_failed_run_and_a_repository_without_results_are_said(
    machine: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (machine / "metrics.json").unlink()
    assert main(["reproduce"]) == 1
    assert "ended with 255" in capfd.readouterr().err.splitlines()[-1]
    subprocess.run(["git", *WHO, "rm", "--quiet", "--cached", "dvc.lock"], check=True)
    subprocess.run(["git", *WHO, "commit", "--quiet", "--message", "none"], check=True)
    assert main(["reproduce"]) == 2
    assert "dvc.lock is not in the commit" in capfd.readouterr().err


def test_a_shallow_clone_is_refused_and_a_folder_of_a_bigger_repository_is_found_in_its_clone(
    machine: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "clone", "--quiet", "--depth", "1", Path.cwd().as_uri(), "shallow")
    monkeypatch.chdir(tmp_path / "shallow")
    assert main(["reproduce"]) == 2
    assert "the clone is shallow, and results name commits that it lacks; `git fetch --unshallow` first" in (
        capfd.readouterr().err
    )
    bigger = tmp_path / "bigger"
    shutil.copytree(tmp_path / "repository", bigger / "inside", ignore=shutil.ignore_patterns(".git"))
    git(bigger, "init", "--quiet")
    commit(bigger, "results")
    monkeypatch.chdir(bigger / "inside")
    assert main(["reproduce"]) == 0
    assert "3 of 3 outputs have the recorded bytes" in capfd.readouterr().out
