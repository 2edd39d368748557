"""Micro-batches and processes change nothing but rounding, and two processes resume exactly; through the command line.

Runs are compared where rounding stays as large as it is. AdamW divides a gradient by its own size, so that a rounding
of a small one can turn a step around; gradients clipped far below its ε = 1e-8 make the update linear in them instead
(its first moment over ε). What is left is the order of additions over a batch. A float32 sum of n terms is off by at
most n u of the sum of their sizes (u = 2^-24; Higham, Accuracy and Stability of Numerical Algorithms, 4.2); the
longest sums here run over the B C H W numbers of a batch.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  before the processes are forked
import pytest
import safetensors.torch
import torch

from rtdmd import cli
from rtdmd.common.errors import UserError
from rtdmd.config.presets import WORLD
from rtdmd.stages import train_acdmd, train_rtdmd
from rtdmd.train.distributed.launch import Place
from rtdmd.train.distributed.ranks import open_stage_on_all_ranks
from rtdmd.train.engine.trackers import VARIABLE
from tests.ports import free_ports
from tests.train.workshop import SHAPE, results, rows_of
from tests.workspace import REPOSITORY, set_params

STEP = {"lr": 1.0, "weight_decay": 0.0, "max_grad_norm": 1e-10}
CLIP_ALONE = {"suites": [{"name": "own", "prompts": "heldout"}], "rewards": WORLD["evaluate"]["rewards"][:1]}
LINEAR = {"generator_optimizer": STEP, "fake_optimizer": STEP, "ema_decay": 0.0, "log_every": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "train_acdmd": LINEAR
    | {"iterations": 4, "save_every": 1, "batch_size": 8, "generator_every": 2, "micro_batch": 8}
    | {"consistency": {"weight": 0.1}, "watch": CLIP_ALONE | {"every": 3, "max_prompts": 1}},
    # three prompts over two processes, and rows of the later terms that fall unevenly
    "train_rtdmd": LINEAR
    | {"epochs": 3, "save_every": 1, "prompts_per_epoch": 3, "group_size": 4, "micro_batch": 12}
    | {"candidate_steps": [0, 1, 2], "trained_steps": 2, "share_initial": False}
    | {"last_step_batch_size": 5, "fake_batch_size": 7, "fake_updates_per_epoch": 2}
    | {"weights": {"reference_kl": 0.1}, "drop_zero_advantage": False}
    | {"watch": CLIP_ALONE | {"every": 2, "max_prompts": 5}},
}
SPLITS = {"train_acdmd": (1, 3), "train_rtdmd": (1, 5)}  # micro-batches to compare with one pass
SAMPLES = {"train_acdmd": 8, "train_rtdmd": 12}
RUN = {"train_acdmd": train_acdmd.run, "train_rtdmd": train_rtdmd.run}
STAGES = tuple(SETTINGS)
C, H, W = SHAPE


@pytest.fixture(scope="module")
def root(root: Path) -> Path:
    """The workspace, with what stage one left set aside."""
    shutil.copytree(root / "results/train_acdmd", root / "start")
    return root


def prepare(root: Path, stage: str, **changes: Any) -> None:
    """Parameters, and a clean start."""
    set_params(root, {stage: SETTINGS[stage] | changes})
    shutil.rmtree(root / ".rtdmd", ignore_errors=True)
    shutil.rmtree(root / "results" / stage, ignore_errors=True)
    if stage == "train_rtdmd":
        shutil.copytree(root / "start", root / "results/train_acdmd", dirs_exist_ok=True)


def as_rank(root: Path, stage: str, rank: int, port: int) -> None:
    """`rtdmd <stage>` in ``root`` as one of two processes that a launcher started; standard error goes to a file."""
    os.chdir(root)
    os.environ |= Place(rank, 2, rank, 2, "127.0.0.1", port).environment()
    os.dup2(os.open(root / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.exit(cli.main([stage]))


def start_two(root: Path, stage: str) -> list[ForkProcess]:
    """Both processes, forked so that the imports are paid once."""
    port, fork = free_ports(1)[0], multiprocessing.get_context("fork")
    processes = [fork.Process(target=as_rank, args=(root, stage, rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    return processes


def codes(processes: list[ForkProcess]) -> list[int | None]:
    """How both ended; None for one that did not within two minutes."""
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def said(root: Path) -> list[str]:
    """What both wrote to standard error."""
    return [(root / f"stderr-{rank}").read_text() for rank in range(2)]


@pytest.fixture(scope="module")
def by_two(root: Path) -> dict[str, dict[str, bytes]]:
    """What two processes leave, by stage."""
    found = {}
    for stage in STAGES:
        prepare(root, stage, processes=2)
        assert codes(start_two(root, stage)) == [0, 0], said(root)
        first, second = said(root)
        assert "wrote generator.safetensors" in first and "Warn" not in first and second == ""
        found[stage] = results(root, stage)
    return found


def update(files: dict[str, bytes]) -> torch.Tensor:
    """What was trained, as one vector: LoRA's B starts at 0."""
    tensors = safetensors.torch.load(files["generator.safetensors"])
    return torch.cat([t.flatten() for name, t in sorted(tensors.items()) if name.endswith("lora_B.weight")]).double()


def require_equal_but_for_rounding(one: dict[str, bytes], other: dict[str, bytes], stage: str) -> None:
    """Updates relative to their length, and every figure of curves.csv and watched.csv."""
    rounding = SAMPLES[stage] * C * H * W * 2.0**-24
    mine, theirs = update(one), update(other)
    assert mine.norm() > 1e-3
    assert (mine - theirs).norm() / mine.norm() < rounding
    for name in ("curves.csv", "watched.csv"):
        for row, same in zip(rows_of(one[name]), rows_of(other[name]), strict=True):
            assert row == pytest.approx(same, rel=rounding, abs=rounding), row.keys()


def test_a_stage_of_another_folder_has_paths_that_hold_in_every_process(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of an experiment or a sweep; the processes that the first one starts work in that folder."""
    prepare(root, "train_acdmd")
    monkeypatch.chdir(root.parent)
    stages = []
    with pytest.raises(UserError, match=r"^enough$"), open_stage_on_all_ranks("train_acdmd", Path(root.name)) as opened:
        stages.append(opened[0])
        raise UserError("enough")
    monkeypatch.chdir(root)
    assert stages[0].input("results/prepare_prompts/train.jsonl").is_file()
    assert stages[0].run_dir.is_dir()


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


@pytest.mark.parametrize(
    ("stage", "how", "ends", "tracker"),
    [
        ("train_acdmd", signal.SIGKILL, [-9, 1], ""),
        ("train_rtdmd", signal.SIGKILL, [-9, 1], ""),
        ("train_acdmd", signal.SIGTERM, [75, 75], "dvclive"),
    ],
)
def test_two_processes_ended_and_resumed_give_the_bytes_of_a_run_left_alone(
    root: Path,
    by_two: dict[str, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    how: signal.Signals,
    ends: list[int],
    tracker: str,
) -> None:
    """The first process gets a signal once the second checkpoint is there; the other ends by itself, in silence. Where
    a tracker is asked for, the first process alone tells it, every step once."""
    monkeypatch.setenv(VARIABLE, tracker)
    prepare(root, stage, processes=2)
    processes = start_two(root, stage)
    while not list(root.glob(".rtdmd/runs/*/step-00000002")) and processes[0].is_alive():
        time.sleep(0.01)
    assert processes[0].pid is not None
    os.kill(processes[0].pid, how)
    assert codes(processes) == ends, said(root)
    assert not (root / "results" / stage / "generator.safetensors").exists()
    assert said(root)[1] == "" and ("which is saved" in said(root)[0]) == (how == signal.SIGTERM)
    assert codes(start_two(root, stage)) == [0, 0], said(root)
    assert results(root, stage) == by_two[stage]
    shown = list(root.glob(".rtdmd/runs/*/dvclive/plots/metrics/machine.seconds.tsv"))
    iterations = ["1", "2", "3", "4"]
    assert [file.read_text().split()[2::2] for file in shown] == ([iterations] if tracker else [])


def command(root: Path, stage: str) -> subprocess.CompletedProcess[str]:
    """`rtdmd <stage>` in ``root`` without a launcher: it starts the second process itself."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, "-P", "-m", "rtdmd", stage]
    return subprocess.run(line, cwd=root, env=env, capture_output=True, text=True, check=False, timeout=300)


def test_the_command_starts_the_other_process_itself(root: Path, by_two: dict[str, dict[str, bytes]]) -> None:
    prepare(root, "train_acdmd", processes=2)
    done = command(root, "train_acdmd")
    assert done.returncode == 0, done.stderr
    assert results(root, "train_acdmd") == by_two["train_acdmd"]


def test_an_error_of_all_processes_is_one_line(root: Path) -> None:
    prepare(root, "train_acdmd", processes=2)
    index = root / "results/cache_teacher/index.json"
    index.rename(root / "index.json")
    ends = codes(start_two(root, "train_acdmd"))
    (root / "index.json").rename(index)
    assert ends == [2, 1]
    line = "rtdmd: results/cache_teacher/index.json: no such file; `snakemake cache_teacher` makes it\n"
    assert said(root) == [line, ""]
