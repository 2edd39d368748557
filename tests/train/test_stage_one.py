"""`train_acdmd` through its own run(root): exact resume, repeatable bytes, and every setting of the method."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from rtdmd.common.errors import RtdmdError
from rtdmd.common.files import load_tensors
from rtdmd.config import preset
from rtdmd.stages import train_acdmd, train_rtdmd
from rtdmd.train import acdmd, losses
from rtdmd.train import adapters as roles_module
from rtdmd.train.acdmd import AcdmdTrainer
from rtdmd.train.adapters import AdapterBank
from rtdmd.train.engine.trackers import VARIABLE
from rtdmd.train.engine.watch import Watch
from tests.train.workshop import checkpoints, killed_at, make_trainable, results, rows_of
from tests.workspace import REPOSITORY, set_params

STAGE = "train_acdmd"
FULL = {"adapter": {"mode": "full"}, "publish": {"format": "merged"}}
EIGHT = {
    "train_acdmd": {"iterations": 8, "save_every": 3, "log_every": 2, "watch": {"every": 4, "max_prompts": 2}},
}
FILES = [
    "curves.csv",
    "fake.safetensors",
    "generator.safetensors",
    "image_log.zip",
    "resolved.json",
    "watched.csv",
    "watched_parses.csv",
]


@pytest.fixture(scope="module")
def root(tiny_teacher: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage-one")
    make_trainable(folder, tiny_teacher, tiny_clip)
    return folder


def train(root: Path, changes: dict[str, Any], fresh: bool = True) -> dict[str, bytes]:
    """Run the stage with smoke parameters and ``changes``; ``fresh``: without a checkpoint to go on from."""
    set_params(root, changes)
    if fresh:
        shutil.rmtree(root / ".rtdmd", ignore_errors=True)
    shutil.rmtree(root / "results" / STAGE, ignore_errors=True)
    train_acdmd.run(root)
    return results(root, STAGE)


@pytest.fixture(scope="module")
def whole(root: Path) -> dict[str, bytes]:
    """Eight iterations without interruption."""
    return train(root, EIGHT)


def test_two_runs_give_the_same_bytes_shown_in_a_tracker_or_not(
    root: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(whole) == FILES
    torch.manual_seed(77)  # whatever came before
    monkeypatch.setenv(VARIABLE, "dvclive")
    assert train(root, EIGHT) == whole
    (shown,) = (root / ".rtdmd/runs").glob("*/dvclive")
    steps = [line.split()[0] for line in (shown / "plots/metrics/fake_ambient.tsv").read_text().splitlines()]
    assert steps == ["step", *map(str, range(1, 9))]
    assert yaml.safe_load((shown / "params.yaml").read_text())["train_acdmd.iterations"] == 8


def test_a_watch_changes_no_other_byte(root: Path, whole: dict[str, bytes]) -> None:
    """A head alone is what an unwatched run has to say; settings and their inputs differ in resolved.json."""
    alone = train(root, {"train_acdmd": EIGHT["train_acdmd"] | {"watch": {"every": 0}}})
    assert [name for name in FILES if alone[name] != whole[name]] == [
        "resolved.json",
        "watched.csv",
        "watched_parses.csv",
    ]
    assert alone["watched.csv"] == b"iteration\n"
    assert [row["iteration"] for row in rows_of(whole["watched.csv"])] == [0, 4, 8]


@pytest.mark.parametrize("step", [1, 4, 6])
def test_killed_and_resumed_is_the_uninterrupted_run(root: Path, whole: dict[str, bytes], step: int) -> None:
    """Killed before the first checkpoint, between two of them in the middle of a row, and right after one."""
    with killed_at(AcdmdTrainer, step):
        train(root, EIGHT)
    assert results(root, STAGE) == {}
    assert train(root, EIGHT, fresh=False) == whole


def test_killed_twice_and_after_the_last_iteration(
    root: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (5, 7):
        with killed_at(AcdmdTrainer, step):
            train(root, EIGHT, fresh=step == 5)

    def dying(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AcdmdTrainer, "write_outputs", dying)
        train(root, EIGHT, fresh=False)
    seen: list[int] = []
    monkeypatch.setattr(AcdmdTrainer, "step", lambda self, cond, draws: seen.append(draws.step))
    assert train(root, EIGHT, fresh=False) == whole
    assert seen == []


KILLED = """
import os, signal, sys
from pathlib import Path
from rtdmd.stages import train_acdmd, train_rtdmd
from rtdmd.train.engine import checkpoint

saves, real = [], checkpoint.save_tensors

def save_tensors(tensors, path):
    real(tensors, path)
    saves.append(path)
    if len(saves) == 10:  # eight groups a checkpoint: in the middle of the second one
        os.kill(os.getpid(), signal.SIGKILL)

checkpoint.save_tensors = save_tensors
train_acdmd.run(Path(sys.argv[1]))
"""


def test_kill_9_inside_a_save_and_resume(root: Path, whole: dict[str, bytes]) -> None:
    set_params(root, EIGHT)
    shutil.rmtree(root / ".rtdmd", ignore_errors=True)
    shutil.rmtree(root / "results" / STAGE, ignore_errors=True)
    command = [sys.executable, "-c", KILLED, str(root)]
    killed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    (run_dir,) = (root / ".rtdmd/runs").iterdir()
    left = [".step-00000006.partial", "LATEST", "journal.jsonl", "step-00000003", "watched"]
    assert sorted(path.name for path in run_dir.iterdir()) == left
    assert train(root, EIGHT, fresh=False) == whole
    assert not list(run_dir.glob(".*.partial"))
    assert not list((root / "results" / STAGE).glob(".partial-*"))


def test_another_seed_is_another_run(root: Path, whole: dict[str, bytes]) -> None:
    other = train(root, EIGHT | {"run": {"seed": 1, "threads": 1}})
    same = [name for name in FILES if other[name] == whole[name]]
    assert same == ["image_log.zip", "watched_parses.csv"]


def test_curves_tell_what_happened(whole: dict[str, bytes]) -> None:
    rows = rows_of(whole["curves.csv"])
    assert [row["iteration"] for row in rows] == [2, 4, 6, 8]
    names = {"fake_ambient", "fake_consistency", "fake_grad_norm", "generator_grad_norm", "matching", "gap"}
    assert all(set(row) == names | {"iteration", "sample_std"} for row in rows)
    assert rows[0]["gap"] > 0 and all(row["generator_grad_norm"] > 0 for row in rows)
    assert all(0.1 < row["sample_std"] < 10 for row in rows)


def test_what_is_written_is_the_average_and_not_the_last_generator(root: Path, whole: dict[str, bytes]) -> None:
    train(root, {"train_acdmd": EIGHT["train_acdmd"] | {"ema_decay": 0.0}})
    last, about = load_tensors(root / "results" / STAGE / "generator.safetensors")
    assert about == {"stage": STAGE, "mode": "lora", "rank": "4", "alpha": "8", "role": "generator"}
    (run_dir,) = (root / ".rtdmd/runs").iterdir()
    live, _ = load_tensors(run_dir / "step-00000008/generator_parameters.safetensors")
    assert sum(value.sum().item() for value in last.values()) == pytest.approx(
        sum(value.sum().item() for value in live.values()), abs=1e-5
    )  # decay 0: the average is the live generator
    averaged = safetensors.torch.load(whole["generator.safetensors"])
    moved = [(value - averaged[name]).abs().max().item() for name, value in last.items()]
    rate = preset("smoke").train_acdmd.generator_optimizer.lr
    assert 0 < max(moved) < 4.04 * rate  # AdamW: about the rate, four times


@pytest.mark.parametrize("per", ["iteration", "generator_update"])
def test_the_average_is_that_of_every_iteration_or_of_every_update(root: Path, per: str) -> None:
    """Against the sum of the generators that the checkpoints hold; and killed between two updates of the generator."""
    changes = {
        STAGE: EIGHT[STAGE] | {"save_every": 1, "keep": 9, "generator_every": 3, "ema_decay": 0.5, "ema_per": per}
    }
    whole = train(root, changes)
    weights, emas = checkpoints(root, "parameters"), checkpoints(root, "ema")
    assert len(weights) == 8 and torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    expected = weights[0]
    for iteration, weight in enumerate(weights, 1):
        if per == "iteration" or iteration % 3 == 0:
            expected = 0.5 * expected + 0.5 * weight
        assert (emas[iteration - 1] - expected).abs().max() < 1e-7
    assert (emas[7] - weights[7]).abs().max() > 1e-5
    with killed_at(AcdmdTrainer, 4):
        train(root, changes)
    assert train(root, changes, fresh=False) == whole


SETTINGS: dict[str, dict[str, Any]] = {
    "dmd2": {"renoise_from": "data", "consistency": {"weight": 0.0}},
    "clamp": {"weighting": "clamp", "consistency": {"weight": 0.0}},
    "one_sample": {"consistency": {"weight": 0.1, "estimator": "one_sample"}, "warmup": 2},
    "eta_star": {"consistency": {"weight": 0.1, "kernel": "eta_star"}, "generator_optimizer": {"weight_decay": 0.1}},
}


def watched(patch: pytest.MonkeyPatch) -> list[tuple[float, float, float]]:
    """Collects (s, least t, largest t) of every renoising."""
    seen: list[tuple[float, float, float]] = []
    real = losses.renoised

    def renoised(*arguments: Any) -> losses.Renoised:
        point = real(*arguments)
        assert point.s.min() == point.s.max()
        seen.append((point.s[0].item(), point.t.min().item(), point.t.max().item()))
        return point

    patch.setattr(acdmd, "renoised", renoised)
    return seen


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_runs(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seen = watched(monkeypatch)
    settings = {"iterations": 6, "log_every": 1} | SETTINGS[name]
    out = train(root, {"train_acdmd": settings})
    rows = rows_of(out["curves.csv"])
    assert len(rows) == len(seen) == 6
    has_term = SETTINGS[name].get("consistency", {"weight": 0.01})["weight"] > 0
    assert all(("fake_consistency" in row) == has_term for row in rows)
    assert [("matching" in row) for row in rows] == [False, True] * 3
    if name == "dmd2":
        assert {s for s, _, _ in seen} == {0.0}
    else:
        assert len({s for s, _, _ in seen}) > 1
        assert {round(s, 4) for s, _, _ in seen} <= {0.9, 0.75, 0.5, 0.0}
    assert all(low >= s + 0.01 - 1e-6 and high <= 1 for s, low, high in seen)


def test_full_mode_trains_resumes_and_leaves_the_teacher(root: Path) -> None:
    changes = {**FULL, "train_acdmd": {"iterations": 4, "save_every": 1}}
    whole = train(root, changes)
    with killed_at(AcdmdTrainer, 2):
        train(root, changes)
    assert train(root, changes, fresh=False) == whole
    base, _ = load_tensors(root / "data/world/teacher/transformer/diffusion_pytorch_model.safetensors")
    full, about = load_tensors(root / "results" / STAGE / "generator.safetensors")
    assert about["mode"] == "full" and full.keys() == base.keys()
    moved = [(full[name] - value).abs().max().item() for name, value in base.items()]
    assert 0 < max(moved) < 1e-3


def test_a_non_finite_value_stops_the_run_with_step_name_and_checkpoint(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = roles_module.AdapterBank.velocity
    calls: list[str] = []

    def velocity(self: Any, role: str, *arguments: Any, **more: Any) -> torch.Tensor:
        v = real(self, role, *arguments, **more)
        calls.append(role)
        return v * float("nan") if role == "teacher" and calls.count("teacher") == 3 else v

    monkeypatch.setattr(roles_module.AdapterBank, "velocity", velocity)
    with pytest.raises(RtdmdError) as caught:
        train(root, EIGHT)
    (run_dir,) = (root / ".rtdmd/runs").iterdir()
    assert str(caught.value) == (
        "train_acdmd stopped at iteration 5: the teacher's projection y_teacher has 1296 non-finite values of 1296;"
        f" the last good checkpoint is iteration 3 in {run_dir}"
    )
    assert results(root, STAGE) == {}


@pytest.mark.parametrize(("role", "name"), [("fake", "the fake score"), ("generator", "the generator")])
def test_a_non_finite_role_is_named(root: Path, monkeypatch: pytest.MonkeyPatch, role: str, name: str) -> None:
    """At an iteration without a generator update, where nothing but the fake score's loss sees it."""
    real = roles_module.AdapterBank.velocity
    calls: list[str] = []

    def velocity(self: Any, which: str, *arguments: Any, **more: Any) -> torch.Tensor:
        calls.append(which)
        v = real(self, which, *arguments, **more)
        return v * float("nan") if which == role else v

    monkeypatch.setattr(roles_module.AdapterBank, "velocity", velocity)
    monkeypatch.setattr(Watch, "before", lambda *_: {})  # which looks before the first step
    with pytest.raises(RtdmdError, match=rf"train_acdmd stopped at iteration 0: .*{name}.*; no checkpoint"):
        train(root, EIGHT)


def test_a_generator_turn_moves_the_generator_and_other_turns_do_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, states = AcdmdTrainer.step, []

    def iteration(self: Any, *arguments: Any) -> dict[str, float]:
        after = (*self.generator.parameters, *self.fakes["fake"].parameters)
        before = [p.detach().clone() for p in after]
        values = real(self, *arguments)
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        half = len(self.generator.parameters)
        states.append((any(moved[:half]), any(moved[half:])))
        return values

    monkeypatch.setattr(AcdmdTrainer, "step", iteration)
    train(root, {"train_acdmd": {"iterations": 6, "generator_every": 3}})
    assert states == [(False, True), (False, True), (True, True)] * 2


def test_without_an_iteration_stage_two_reinforces_the_base_as_it_is(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = train(root, {"train_acdmd": {"iterations": 0}})
    assert sorted(made) == FILES and (made["curves.csv"], made["watched.csv"]) == (b"iteration\n", b"iteration\n")
    assert "train_acdmd: iterations: 0, nothing is trained: the student is" in capsys.readouterr().err
    for name in ("generator", "fake"):
        tensors = load_tensors(root / f"results/{STAGE}/{name}.safetensors")[0]
        assert not any(tensor.any() for key, tensor in tensors.items() if ".lora_B." in key)
        assert all(tensor.any() for key, tensor in tensors.items() if ".lora_A." in key)
    train_rtdmd.run(root)
    rows = rows_of(results(root, "train_rtdmd")["curves.csv"])
    assert [row["epoch"] for row in rows] == [1, 2]
    trained = load_tensors(root / "results/train_rtdmd/generator.safetensors")[0]
    assert any(tensor.any() for key, tensor in trained.items() if ".lora_B." in key)


def test_the_teachers_guidance_is_drawn_anew_for_each_update(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    real = AdapterBank.velocity

    def velocity(self: AdapterBank, role: str, *given: Any, **options: Any) -> torch.Tensor:
        if role == "teacher":
            seen.append(options["guidance"])
        return real(self, role, *given, **options)

    monkeypatch.setattr(AdapterBank, "velocity", velocity)
    train(root, {STAGE: {"guidance_range": [2.0, 6.0], "micro_batch": 2}})
    first, same, second, again = seen  # two generator turns of two micro-batches
    assert first == same != second == again and all(2 < scale < 6 for scale in seen)
