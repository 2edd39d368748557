"""What processes tell each other: sums, gathered rows, an error of one that is everyone's. Two real processes over
gloo; with one process everything is the identity."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rtdmd.common.errors import UserError
from rtdmd.config import preset
from rtdmd.train.distributed import ranks as module
from rtdmd.train.distributed.launch import Place
from rtdmd.train.distributed.ranks import BUCKET, Ranks, _buckets, join, own_gpu
from tests.ports import free_ports
from tests.workspace import REPOSITORY

SCRIPT = """
import sys, torch
from types import SimpleNamespace
from rtdmd.config import preset
from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.signals import Stopped
from rtdmd.train.learner import Gradients
from rtdmd.train.distributed.ranks import join

run = preset("smoke", {"run": {"threads": 1}}).run

def complaint(action):
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def fails(ranks, error):
    with ranks.sync_errors():
        if ranks.rank == 1:
            raise error

with join("train_acdmd", 2, run) as ranks:
    me = ranks.rank
    tensors = [torch.full((2, 3), 1.0 + me), torch.tensor([0.1 + me], dtype=torch.bfloat16), torch.zeros(0)]
    ranks.all_reduce_tensors(tensors)
    assert tensors[0].tolist() == [[3.0] * 3] * 2 and tensors[1].item() == 1.203125, tensors
    assert tensors[1].dtype == torch.bfloat16
    assert ranks.all_reduce({"a": 1.0, "b": 0.25 * me}) == {"a": 2.0, "b": 0.25}
    assert ranks.all_reduce({"a": 1.0 * me}, "mean") == {"a": 0.5}
    assert ranks.all_reduce({"a": 1.5 - me, "b": 1.0 * me}, "max") == {"a": 1.5, "b": 1.0}
    assert ranks.all_gather_object("xy"[me]) == ["x", "y"]
    rows = torch.arange(5.0)[slice(2) if me == 0 else slice(2, 5)]
    assert ranks.all_gather(rows).tolist() == [0, 1, 2, 3, 4]
    assert abs(ranks.global_std(rows) - torch.arange(5.0).std().item()) < 1e-6
    assert list(ranks.local_shard(5)) == ([0, 1] if me == 0 else [2, 3, 4])

    learner = SimpleNamespace(parameters=[torch.zeros(2)])  # no sample of the term fell to process 0
    term = Gradients(learner, None if me == 0 else [torch.tensor([1.0, 2.0])])
    term.all_reduce(ranks)
    assert term.total[0].tolist() == [1.0, 2.0]
    nothing = Gradients(learner)
    nothing.all_reduce(ranks)
    assert nothing.total is None

    ranks.assert_replicated([torch.ones(3)], "the weights")
    off = torch.ones(3)
    off[1] += me * 1e-7
    said = complaint(lambda: ranks.assert_replicated([off], "the weights at iteration 5"))
    assert said.startswith("RtdmdError: the weights at iteration 5 of process 1 are not those of process 0"), said
    swapped = torch.tensor([1.0, 2.0] if me else [2.0, 1.0])
    assert complaint(lambda: ranks.assert_replicated([swapped], "the weights"))
    for error in (FloatingPointError("x is nan"), UserError("no key a")):
        expected = f"{type(error).__name__}: {error} (process 1 of 2)"
        assert complaint(lambda: fails(ranks, error)) == expected
    try:  # a signal to one process ends all as a signal does: exit code 75
        fails(ranks, Stopped("stopped by SIGTERM"))
    except Stopped as stopped:
        assert str(stopped) == "stopped by SIGTERM"
    else:
        raise AssertionError("not stopped")
    print("done", me, flush=True)
    if me == 1 and sys.argv[1] == "dies":
        import os
        os._exit(9)
    if sys.argv[1] == "dies":
        said = complaint(lambda: ranks.all_gather_object(0))
        assert said.startswith("RtdmdError: another process of the run ended or does not answer; its own error"), said
        print("told", flush=True)
    elif me == 1:
        raise RtdmdError("which process 0 tells")
"""


def by_torch(rank: int, port: int) -> dict[str, str]:
    """What accelerate and torchrun set."""
    return Place(rank, 2, rank, 2, "127.0.0.1", port).environment()


def by_slurm(rank: int, port: int) -> dict[str, str]:
    """What a Slurm step of two tasks sets, and an address that the user gave."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost"}
    step |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    return step | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def two_processes(how: str, launcher: Callable[[int, int], dict[str, str]]) -> list[subprocess.CompletedProcess[str]]:
    """The script as rank 0 and rank 1."""
    port, command = free_ports(1)[0], [sys.executable, "-c", SCRIPT, how]
    options: dict[str, Any] = {"cwd": REPOSITORY, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = []
    for rank in range(2):
        started.append(subprocess.Popen(command, env=os.environ | launcher(rank, port), **options))
    ends = [(process, *process.communicate(timeout=120)) for process in started]
    return [subprocess.CompletedProcess(command, process.returncode, out, err) for process, out, err in ends]


def test_two_processes_add_up_gather_and_fail_together() -> None:
    first, second = two_processes("ends", by_slurm)
    assert first.returncode == 0 and first.stdout == "done 0\n", first.stderr
    assert second.returncode == 1 and second.stdout == "done 1\n", second.stderr
    assert "Error" not in second.stderr  # what is everyone's error is told once, by the first process
    assert "Warn" not in first.stderr + second.stderr


def test_a_process_that_is_gone_is_one_line() -> None:
    first, second = two_processes("dies", by_torch)
    assert second.returncode == 9, second.stderr
    assert first.returncode == 0 and first.stdout == "done 0\ntold\n", first.stderr


def test_one_process_is_the_identity() -> None:
    ranks, tensor = Ranks(), torch.tensor([0.1, 0.7])
    ranks.all_reduce_tensors([tensor])
    assert tensor.tolist() == torch.tensor([0.1, 0.7]).tolist()
    assert ranks.all_reduce({"a": 0.1}) == ranks.all_reduce({"a": 0.1}, "mean") == {"a": 0.1}
    assert ranks.all_gather_object(5) == [5] and ranks.all_gather(tensor) is tensor
    assert ranks.global_std(tensor) == tensor.std().item() and ranks.local_shard(7) == range(7)
    with pytest.raises(FloatingPointError, match=r"^x is nan$"), ranks.sync_errors():
        raise FloatingPointError("x is nan")


@pytest.mark.parametrize(("count", "world"), [(8, 2), (7, 3), (3, 3), (72, 8)])
def test_shares_are_contiguous_and_at_most_one_apart(count: int, world: int) -> None:
    shares = [Ranks(rank, world).local_shard(count) for rank in range(world)]
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_takes_the_gpu_of_its_place_or_the_only_one_it_sees() -> None:
    assert [own_gpu(rank, 4, "train_acdmd") for rank in range(4)] == [0, 1, 2, 3]
    assert own_gpu(3, 1, "train_acdmd") == 0
    with pytest.raises(UserError, match=r"train_acdmd\.processes: process 3 of this machine finds 2 GPUs"):
        own_gpu(2, 2, "train_acdmd")


def test_a_process_without_a_gpu_says_so_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it answers rank 0, which has a GPU and would wait for it for an hour."""
    for name, value in Place(2, 3, 2, 3, "127.0.0.1", 1).environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RTDMD_ROLL_CALL", "1")  # nobody listens
    monkeypatch.setattr(module, "configure", lambda run: torch.device(run.device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run = preset("smoke", {"run": {"device": "cuda"}}).run
    with (
        pytest.raises(UserError, match=r"train_acdmd\.processes: process 3 of this machine finds 2 GPUs"),
        join("train_acdmd", 3, run),
    ):
        pass


def test_buckets_keep_order_and_size() -> None:
    sizes = [BUCKET // 2, BUCKET // 2, 1, BUCKET + 5, 3]
    buckets = list(_buckets([torch.empty(size, device="meta") for size in sizes]))
    assert [[tensor.numel() for tensor in bucket] for bucket in buckets] == [
        sizes[:2],
        sizes[2:3],
        sizes[3:4],
        sizes[4:],
    ]
