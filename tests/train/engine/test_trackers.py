"""Trackers: every step of the journal once, after a kill too; nothing else is touched, and nothing imported unasked."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from rtdmd.common.errors import UserError
from rtdmd.common.images import save_png
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.engine import trackers
from rtdmd.train.engine.loop import Loop
from rtdmd.train.engine.trackers import VARIABLE, image_log_path, start_trackers
from tests.workspace import REPOSITORY

PARAMS = {"model": {"eta": 1.0}, "train_test": {"rewards": [{"name": "a", "socket": None}], "full": False, "steps": 8}}
FLAT = {
    "model.eta": 1.0,
    "train_test.rewards.0.name": "a",
    "train_test.rewards.0.socket": None,
    "train_test.full": False,
    "train_test.steps": 8,
}


def advance(folder: Path, until: int = 8, ranks: Ranks | None = None) -> Loop:
    """A run of eight steps with a checkpoint every three and an image grid every four, ended without warning where
    ``until`` is less."""
    ranks = ranks or Ranks()
    with start_trackers(folder, PARAMS, ranks) as running:
        loop = Loop(folder, 8, 3, 2, {}, "train_test", "iteration", ranks, trackers=running)
        for step in loop:
            loop.log(step, {"loss": 1 / (step + 1), "norm": 2.0, "norm/sigma=0.5": 3.0})
            if (step + 1) % 4 == 0:
                save_png(image_log_path(folder, step + 1), np.full((5, 6, 3), step, np.uint8))
            if step + 1 == until < 8:
                raise KeyboardInterrupt
    return loop


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
    assert yaml.safe_load((run / "dvclive/params.yaml").read_text()) == FLAT
    with Image.open(run / "dvclive/plots/images/image_log.png") as panel:
        assert panel.size == (6, 5) and panel.getpixel((0, 0)) == (7, 7, 7), "the newest"
    assert latest["step"] == 8 and latest["loss"] == 0.125 and latest["norm"] == 2.0
    assert git(tmp_path, "status", "--porcelain") == "" and git(tmp_path, "for-each-ref") == refs
    assert not (tmp_path / "dvc.yaml").exists() and not (run / "dvclive/dvc.yaml").exists()
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "alone").mkdir()
    assert found.rows == advance(tmp_path / "alone").rows
    assert "WARN" not in capfd.readouterr().err.upper()


def test_tensorboard_has_the_journal_once_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back with its own reader: every step once, the image grids at their steps, the run's params."""
    monkeypatch.setenv(VARIABLE, "tensorboard")
    with pytest.raises(KeyboardInterrupt):
        advance(tmp_path, 5)
    advance(tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "tensorboard").glob("events.*")
    found = EventAccumulator(str(events), {"images": 0}).Reload()
    assert [(row.step, row.value) for row in found.Scalars("loss")] == [
        (k, pytest.approx(1 / k, rel=1e-7)) for k in range(1, 9)
    ]
    assert [(row.step, row.value) for row in found.Scalars("norm/sigma=0.5")] == [(k, 3.0) for k in range(1, 9)]
    panels = found.Images("image_log")
    assert [(row.step, row.width, row.height) for row in panels] == [(4, 6, 5), (8, 6, 5)]
    (settings,) = (tmp_path / "tensorboard").glob("*/hparams.yml")
    assert yaml.safe_load(settings.read_text()) == FLAT


class Service:
    """W&B and Trackio as far as accelerate's trackers and ours ask them, with runs that outlive a process: neither is
    in the environment of the tests (docs/evidence/training.md). A step that it has it does not take again."""

    def __init__(self) -> None:
        self.runs: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        self.config: dict[str, Any] = {}
        self.finished: list[str] = []

    def init(self, project: str, name: str, resume: str, **settings: Any) -> Any:
        """A run, new or gone on with."""
        assert (project, resume, settings.get("id", name)) == ("rtdmd", "allow", name)
        rows = self.runs.setdefault(name, [])
        first = rows[-1][0] + 1 if rows else 0

        def log(values: dict[str, Any], step: int) -> None:
            assert not rows or step >= rows[-1][0], "a step that it has"
            rows.append((step, dict(values)))

        return SimpleNamespace(
            log=log, starting_step=first, _next_step=first, finish=lambda: self.finished.append(name)
        )

    def module(self, name: str) -> ModuleType:
        """The package that reaches it."""
        package: Any = ModuleType(name)
        package.init = self.init
        package.config = SimpleNamespace(update=lambda values, allow_val_change: self.config.update(values))
        package.Settings = dict
        package.Error = LookupError
        package.Image = lambda image: ("image", Path(image).name if isinstance(image, Path) else image.size)
        return package


@pytest.fixture(params=["wandb", "trackio"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    """Each service, as the one that is asked for."""
    found = Service()
    monkeypatch.setitem(sys.modules, request.param, found.module(request.param))
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setenv(VARIABLE, request.param)
    return found


def test_a_service_goes_on_with_its_run_and_has_every_step_once(tmp_path: Path, service: Service) -> None:
    """Killed after step 5, which it has; resumed from step 3, and told from step 6 on."""
    run = tmp_path / "train_test-0"
    run.mkdir()
    with pytest.raises(KeyboardInterrupt):
        advance(run, 5)
    found = advance(run)
    ((name, rows),) = service.runs.items()
    assert re.fullmatch(r"train_test-0-[0-9a-f]{8}", name) and service.finished == [name, name]
    assert [(step, values["loss"]) for step, values in rows if "loss" in values] == [(k, 1 / k) for k in range(1, 9)]
    assert [step for step, values in rows if "image_log" in values] == [4, 8]
    assert service.config == FLAT
    alone = tmp_path / "alone"
    alone.mkdir()
    assert advance(alone).rows == found.rows
    assert len(service.runs) == 2, "a new folder is another run"


def test_one_that_asked_late_is_told_the_journal(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as unwatched, pytest.raises(KeyboardInterrupt):
        unwatched.delenv(VARIABLE)
        advance(tmp_path, 5)
    assert service.runs == {}
    advance(tmp_path)
    (rows,) = service.runs.values()
    assert [step for step, values in rows if "loss" in values] == list(range(1, 9))


def test_what_does_not_start_ends_the_run_before_its_first_step(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is many lines; ours is one, with what to change. What was started before it is finished."""

    def refuse(**settings: Any) -> None:
        raise OSError("no answer\nwhile retrying:  refused")

    name = os.environ[VARIABLE]
    monkeypatch.setattr(sys.modules[name], "init", refuse)
    monkeypatch.setenv(VARIABLE, f"dvclive,{name}")
    remedy = {"wandb": "`wandb login`, or WANDB_MODE=offline, or leave it out"}
    says = f"RTDMD_TRACKERS: {name} does not start (no answer while retrying: refused); "
    with pytest.raises(UserError, match=f"^{re.escape(says + remedy.get(name, 'see its TRACKIO_ variables'))}"):
        advance(tmp_path)
    assert not (tmp_path / "journal.jsonl").exists()
    assert sys.modules["accelerate"].PartialState._shared_state == {}


def test_one_that_is_lost_in_the_middle_is_told_once_and_the_training_goes_on(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = os.environ[VARIABLE]
    package = sys.modules[name]

    def init(**settings: Any) -> Any:
        run = service.init(**settings)
        log = run.log

        def fail_after_two(values: dict[str, Any], step: int) -> None:
            if step > 2:
                raise ConnectionResetError("Connection reset\nby peer")
            log(values, step=step)

        run.log = fail_after_two
        return run

    monkeypatch.setattr(package, "init", init)
    found = advance(tmp_path)
    assert [row["iteration"] for row in found.rows] == [2, 4, 6, 8]
    says = f"RTDMD_TRACKERS: {name} is lost after step 2: Connection reset by peer; the training goes on without it\n"
    assert capfd.readouterr().err.count(says) == 1
    (rows,) = service.runs.values()
    assert [step for step, _ in rows] == [1, 2]


def test_a_link_in_the_run_folder_is_never_written_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tracker's and the journal's are replaced at the start; one that comes later ends the run."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "dvclive").symlink_to(kept)
    (run / "journal.jsonl").symlink_to(kept / "mine.txt")
    monkeypatch.setenv(VARIABLE, "dvclive")
    with start_trackers(run, PARAMS, Ranks()) as running:
        loop = Loop(run, 8, 3, 2, {}, "train_test", "iteration", Ranks(), trackers=running)
        steps = iter(loop)
        loop.log(next(steps), {"loss": 1.0})
    assert not (run / "dvclive").is_symlink() and not (run / "journal.jsonl").is_symlink()
    (run / "journal.jsonl").unlink()
    (run / "journal.jsonl").symlink_to(kept / "mine.txt")
    with pytest.raises(UserError, match=r"journal\.jsonl: no file to write to \(Too many .*\); `rm -r .*`, then run"):
        loop.log(next(steps), {"loss": 1.0})
    assert [path.name for path in kept.iterdir()] == ["mine.txt"]
    assert (kept / "mine.txt").read_text() == "mine\n"


@pytest.mark.parametrize("name", ["train_acdmd", "train_rtdmd"])
def test_one_that_cannot_be_had_ends_a_stage_before_a_model_is_loaded(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stage = importlib.import_module(f"rtdmd.stages.{name}")  # here, since it imports accelerate
    monkeypatch.setenv(VARIABLE, "tensorbord")
    monkeypatch.setattr(stage, "load_backbone", lambda *_, **__: pytest.fail("a model is loaded"))
    with pytest.raises(
        UserError, match=r"^RTDMD_TRACKERS: tensorbord; allowed: dvclive, tensorboard, trackio, wandb, "
    ):
        stage.run(root)


@pytest.mark.parametrize("names", ["tensorbord", "dvclive, tensorbord"])
def test_an_unknown_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv(VARIABLE, names)
    with pytest.raises(
        UserError, match=r"^RTDMD_TRACKERS: tensorbord; allowed: dvclive, tensorboard, trackio, wandb, "
    ):
        advance(tmp_path)


def test_one_that_is_not_installed_comes_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tensorboard")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^RTDMD_TRACKERS: tensorboard is not installed; `make trackers` installs it"):
        advance(tmp_path)


def test_only_the_first_process_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "dvclive")
    monkeypatch.setattr(trackers, "requested_trackers", lambda: pytest.fail("another process looks for trackers"))
    advance(tmp_path, ranks=Ranks(rank=1))
    assert not (tmp_path / "dvclive").exists()


def test_nothing_is_imported_unless_asked_for(tmp_path: Path) -> None:
    assert importlib.util.find_spec("dvclive")
    code = (
        "import sys; from pathlib import Path; from tests.train.engine.test_trackers import advance;"
        " advance(Path(sys.argv[1]));"
        " print(sorted({'accelerate', 'dvclive', 'tensorboard', 'wandb'} & set(sys.modules)))"
    )
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=REPOSITORY, env=env, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr
