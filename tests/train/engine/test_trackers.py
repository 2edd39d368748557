"""Trackers: every step of the journal once, after a kill too; nothing else is touched, and nothing imported unasked."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.engine import trackers
from rtdmd.train.engine.loop import Loop
from rtdmd.train.engine.trackers import VARIABLE
from tests.workspace import REPOSITORY


def advance(folder: Path, until: int = 8, ranks: Ranks | None = None) -> Loop:
    """A run of eight steps with a checkpoint every three, ended without warning where ``until`` is less."""
    loop = Loop(folder, 8, 3, 2, {}, "train_test", "iteration", ranks or Ranks())
    for step in loop:
        loop.log(step, {"loss": 1 / (step + 1), "norm": 2.0, "norm/sigma=0.5": 3.0})
        if step + 1 == until < 8:
            raise KeyboardInterrupt
    return loop


class Silent:
    """A tracker that makes its folder and shows nothing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()

    def log(self, values: dict[str, float], step: int) -> None:
        pass

    def finish(self) -> None:
        pass


def git(folder: Path, *arguments: str) -> str:
    """What a Git command in ``folder`` prints."""
    person = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    options: dict[str, Any] = {"cwd": folder, "env": os.environ | person, "capture_output": True, "text": True}
    return str(subprocess.run(["git", *arguments], check=True, **options).stdout)


def test_dvclive_has_every_step_once_and_leaves_the_repository_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Asked for from the second start on: steps 4 and 5 were told, not saved, and come again."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").touch()
    (tmp_path / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (tmp_path / ".gitignore").write_text("/.rtdmd/\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=a")
    refs = git(tmp_path, "for-each-ref")
    monkeypatch.chdir(tmp_path)
    run = Path(".rtdmd/runs/train_test-0")
    run.mkdir(parents=True)
    for names, until in (("", 4), ("dvclive", 5)):
        monkeypatch.setenv(VARIABLE, names)
        with pytest.raises(KeyboardInterrupt):
            advance(run, until)
    found = advance(run)
    metrics = {path.stem: path.read_text().split() for path in (run / "dvclive/plots/metrics").glob("*.tsv")}
    assert metrics.keys() == {"loss", "norm", "norm.sigma=0.5", "machine.seconds", "machine.peak_memory_mib"}
    assert metrics["loss"][:2] == ["step", "loss"]
    assert [float(text) for text in metrics["loss"][2:]] == [x for k in range(1, 9) for x in (k, 1 / k)]
    latest = json.loads((run / "dvclive/metrics.json").read_text())
    assert latest["step"] == 8 and latest["loss"] == 0.125 and latest["norm"] == 2.0
    assert git(tmp_path, "status", "--porcelain") == "" and git(tmp_path, "for-each-ref") == refs
    assert not (tmp_path / "dvc.yaml").exists() and not (run / "dvclive/dvc.yaml").exists()
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "alone").mkdir()
    assert found.rows == advance(tmp_path / "alone").rows
    assert "WARN" not in capfd.readouterr().err.upper()


def test_tensorboard_gets_the_journal_anew_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, list[tuple[str, float, int]]] = {}

    class SummaryWriter:
        """TensorBoard's writer, as far as it is asked."""

        def __init__(self, folder: str) -> None:
            Path(folder).mkdir()  # a former start's is gone
            self.rows = written.setdefault(folder, [])
            self.rows.clear()

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.rows.append((name, value, step))

        def close(self) -> None:
            self.rows.append(("closed", 0.0, 0))

    package: Any = ModuleType("torch.utils.tensorboard")
    package.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", package)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setenv(VARIABLE, "tensorboard")
    with pytest.raises(KeyboardInterrupt):
        advance(tmp_path, 5)
    advance(tmp_path)
    (rows,) = written.values()
    assert [row for row in rows if row[0] == "loss"] == [("loss", 1 / k, k) for k in range(1, 9)]
    assert ("norm/sigma=0.5", 3.0, 8) in rows and rows[-1][0] == "closed"


def test_a_link_in_the_run_folder_is_never_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker's and the journal's are replaced at the start; one that comes later ends the run."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").symlink_to(kept)
    (run / "journal.jsonl").symlink_to(kept / "mine.txt")
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(trackers, "KINDS", {"tensorboard": Silent})
    monkeypatch.setenv(VARIABLE, "tensorboard")
    loop = Loop(run, 8, 3, 2, {}, "train_test", "iteration", Ranks())
    steps = iter(loop)
    loop.log(next(steps), {"loss": 1.0})
    assert not (run / "tensorboard").is_symlink() and not (run / "journal.jsonl").is_symlink()
    (run / "journal.jsonl").unlink()
    (run / "journal.jsonl").symlink_to(kept / "mine.txt")
    with pytest.raises(UserError, match=r"journal\.jsonl: no file to write to \(Too many .*\); `rm -r .*`, then run"):
        loop.log(next(steps), {"loss": 1.0})
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]
    assert (kept / "mine.txt").read_text() == "mine\n"


@pytest.mark.parametrize("names", ["tensorbord", "dvclive, tensorbord"])
def test_an_unknown_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv(VARIABLE, names)
    with pytest.raises(UserError, match=r"^RTDMD_TRACKERS: tensorbord; allowed: dvclive, tensorboard, several"):
        advance(tmp_path)


def test_one_that_is_not_installed_comes_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tensorboard")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"tensorboard is not installed; `.venv/bin/python -m pip install tensorboard`"):
        advance(tmp_path)


def test_only_the_first_process_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "dvclive")
    monkeypatch.setattr(trackers, "wanted", lambda: pytest.fail("another process looks for trackers"))
    advance(tmp_path, ranks=Ranks(rank=1))
    assert not (tmp_path / "dvclive").exists()


def test_nothing_is_imported_unless_asked_for(tmp_path: Path) -> None:
    assert importlib.util.find_spec("dvclive")
    code = (
        "import sys; from pathlib import Path; from tests.train.engine.test_trackers import advance;"
        " advance(Path(sys.argv[1]));"
        " print(sorted({'dvclive', 'tensorboard'} & set(sys.modules)))"
    )
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=REPOSITORY, env=env, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr
