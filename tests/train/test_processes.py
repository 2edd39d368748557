"""Micro-batches and processes change nothing but rounding, and two processes resume exactly; through the command line.

Runs are compared where rounding stays as large as it is. AdamW divides a gradient by its own size, so that a rounding
of a small one can turn a step around; gradients clipped far below its ε = 1e-8 make the update linear in them instead
(its first moment over ε). What is left is the order of additions over a batch. A float32 sum of n terms is off by at
most n u of the sum of their sizes (u = 2^-24; Higham, Accuracy and Stability of Numerical Algorithms, 4.2); the
longest sums here run over the B C H W numbers of a batch.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rtdmd.stages import train_acdmd, train_rtdmd
from tests.train.workshop import SHAPE, make_trainable, results, rows_of
from tests.workspace import REPOSITORY, set_params

LINEAR = {"max_grad_norm": 1e-10, "lr_generator": 1.0, "lr_fake": 1.0, "weight_decay": 0.0, "log_every": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "train_acdmd": LINEAR
    | {"iterations": 4, "save_every": 1, "batch_size": 8, "generator_every": 2, "micro_batch": 8}
    | {"consistency": {"weight": 0.1}},
    # three prompts over two processes, and rows of the later terms that fall unevenly
    "train_rtdmd": LINEAR
    | {"epochs": 3, "save_every": 1, "prompts_per_epoch": 3, "group_size": 4, "micro_batch": 12}
    | {"candidate_steps": [0, 1, 2], "trained_steps": 2, "share_initial": False}
    | {"last_step_batch_size": 5, "fake_batch_size": 7, "fake_updates_per_epoch": 2}
    | {"weights": {"reference_kl": 0.1}, "drop_zero_advantage": False},
}
SPLITS = {"train_acdmd": (1, 3), "train_rtdmd": (1, 5)}  # micro-batches to compare with one pass
SAMPLES = {"train_acdmd": 8, "train_rtdmd": 12}
RUN = {"train_acdmd": train_acdmd.run, "train_rtdmd": train_rtdmd.run}
STAGES = tuple(SETTINGS)
C, H, W = SHAPE


@pytest.fixture(scope="module")
def root(tiny_teacher: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after a short stage one."""
    folder = tmp_path_factory.mktemp("processes")
    make_trainable(folder, tiny_teacher, tiny_clip)
    set_params(folder, {"train_acdmd": {"lr_generator": 0.02, "lr_fake": 0.02}})
    train_acdmd.run(folder)
    shutil.copytree(folder / "results/train_acdmd", folder / "start")
    return folder


def prepare(root: Path, stage: str, **changes: Any) -> None:
    """Parameters, and a clean start."""
    set_params(root, {stage: SETTINGS[stage] | changes})
    shutil.rmtree(root / ".rtdmd", ignore_errors=True)
    shutil.rmtree(root / "results" / stage, ignore_errors=True)
    if stage == "train_rtdmd":
        shutil.copytree(root / "start", root / "results/train_acdmd", dirs_exist_ok=True)


def command(root: Path, stage: str) -> subprocess.Popen[str]:
    """`rtdmd <stage>` in ``root``, in a process group of its own."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, "-P", "-m", "rtdmd", stage]
    return subprocess.Popen(line, cwd=root, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    _, error = process.communicate(timeout=300)
    return process.returncode, error


@pytest.fixture(scope="module")
def by_two(root: Path) -> dict[str, dict[str, bytes]]:
    """What two processes leave, by stage."""
    found = {}
    for stage in STAGES:
        prepare(root, stage, processes=2)
        code, error = finish(command(root, stage))
        assert code == 0, error
        assert error.count("wrote generator.safetensors") == 1 and "Warn" not in error, error
        found[stage] = results(root, stage)
    return found


def update(files: dict[str, bytes]) -> torch.Tensor:
    """What was trained, as one vector: LoRA's B starts at 0."""
    tensors = safetensors.torch.load(files["generator.safetensors"])
    return torch.cat([t.flatten() for name, t in sorted(tensors.items()) if name.endswith("lora_B.weight")]).double()


def require_equal_but_for_rounding(one: dict[str, bytes], other: dict[str, bytes], stage: str) -> None:
    """Updates relative to their length, and every figure of curves.csv."""
    rounding = SAMPLES[stage] * C * H * W * 2.0**-24
    mine, theirs = update(one), update(other)
    assert mine.norm() > 1e-3
    assert (mine - theirs).norm() / mine.norm() < rounding
    for row, same in zip(rows_of(one["curves.csv"]), rows_of(other["curves.csv"]), strict=True):
        assert row == pytest.approx(same, rel=rounding, abs=rounding), row.keys()


@pytest.mark.parametrize("stage", STAGES)
def test_micro_batches_and_processes_change_nothing_but_rounding(
    root: Path, by_two: dict[str, dict[str, bytes]], stage: str
) -> None:
    prepare(root, stage)
    RUN[stage](root)
    whole = results(root, stage)
    for size in SPLITS[stage]:
        prepare(root, stage, micro_batch=size)
        RUN[stage](root)
        require_equal_but_for_rounding(whole, results(root, stage), stage)
    require_equal_but_for_rounding(whole, by_two[stage], stage)


def ended(root: Path, stage: str, how: signal.Signals) -> tuple[int, str]:
    """Two processes, of which the first gets a signal once its second checkpoint is there; both are gone afterwards."""
    process = command(root, stage)
    while not list(root.glob(".rtdmd/runs/*/step-00000002")) and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, how)
    code, error = finish(process)
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return code, error
        time.sleep(0.1)
    raise AssertionError("the second process is still there after a minute")


@pytest.mark.parametrize(
    ("stage", "how", "code"),
    [("train_acdmd", signal.SIGKILL, -9), ("train_rtdmd", signal.SIGKILL, -9), ("train_acdmd", signal.SIGTERM, 75)],
)
def test_two_processes_ended_and_resumed_give_the_bytes_of_a_run_left_alone(
    root: Path, by_two: dict[str, dict[str, bytes]], stage: str, how: signal.Signals, code: int
) -> None:
    prepare(root, stage, processes=2)
    found, error = ended(root, stage, how)
    assert found == code, error
    assert results(root, stage) == {} if (root / "results" / stage).exists() else True
    assert ("which is saved" in error) == (how == signal.SIGTERM), error
    again, error = finish(command(root, stage))
    assert again == 0, error
    assert results(root, stage) == by_two[stage]


def test_an_error_of_all_processes_is_one_line(root: Path) -> None:
    prepare(root, "train_acdmd", processes=2)
    (root / "results/cache_teacher/index.json").rename(root / "index.json")
    code, error = finish(command(root, "train_acdmd"))
    (root / "index.json").rename(root / "results/cache_teacher/index.json")
    assert code == 2
    assert error.splitlines() == [
        "rtdmd: results/cache_teacher/index.json: no such file; `snakemake cache_teacher` makes it"
    ]
