"""A process finds its place from torch's variables or from a Slurm step's, and another number of processes than
params.yaml asks for is refused."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.config import preset
from rtdmd.train.distributed import launch
from rtdmd.train.distributed.launch import Place, found_place, place_of, require_sharding
from rtdmd.train.distributed.nodes import FIRST_RANK, first_host
from rtdmd.train.distributed.ranks import join
from tests.workspace import REPOSITORY

RUN = preset("smoke", {"run": {"threads": 3}}).run

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCH |= {"MASTER_ADDR": "gpu07", "MASTER_PORT": "1234"}
SLURM = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
SLURM |= {"SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "12345", "SLURM_STEP_ID": "2"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever started the tests is not part of them."""
    for name in {*TORCH, *SLURM}:
        monkeypatch.delenv(name, raising=False)


def test_the_place_comes_from_torchs_variables() -> None:
    place = Place(3, 4, 1, 2, "gpu07", 1234)
    assert found_place(TORCH) == place
    assert place.environment() == TORCH
    assert found_place(TORCH | SLURM | {"SLURM_PROCID": "0"}) == place  # a launcher inside a Slurm step
    assert found_place({}) is None


def test_a_slurm_steps_variables_are_mapped_and_a_named_address_wins() -> None:
    assert found_place(SLURM) == Place(3, 4, 1, 2, "gpu07", 20000 + (12345 + 2) % 10000)
    named = found_place(SLURM | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert named == Place(3, 4, 1, 2, "10.0.0.1", 29500)
    assert found_place(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None  # one task: the stage starts the others itself


def test_a_task_that_the_stage_started_on_another_node_counts_from_the_ranks_of_the_first() -> None:
    step = SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "MASTER_ADDR": "gpu06", "MASTER_PORT": "4321"}
    assert found_place(step | {FIRST_RANK: "2"}) == Place(2, 6, 0, 2, "gpu06", 4321)
    assert found_place(step | {FIRST_RANK: "2", "WORLD_SIZE": "1"}) == Place(2, 6, 0, 2, "gpu06", 4321)  # of the job
    alone = step | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", FIRST_RANK: "1"}
    assert found_place(alone) == Place(1, 2, 0, 1, "gpu06", 4321)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu07,gpu09", "gpu07"),
        ("gpu[07-09,12]", "gpu07"),
        ("n[1,3-5],m[7-9]", "n1"),
        ("rack1-gpu[001-128]", "rack1-gpu001"),
        ("rack[1-2]n[1-3]", "rack1n1"),
        ("rack[02,4-5]n[010-012,3],login", "rack02n010"),
    ],
)
def test_the_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_what_is_missing_or_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"WORLD_SIZE is 2 but RANK, MASTER_ADDR, MASTER_PORT is not set; .*accelerate"):
        found_place({"WORLD_SIZE": "2"})
    for torn in ("", "[", "gpu[07", "gpu[]", "gpu[7-", "gpu 7", "gpu]7"):
        names = re.escape(f"SLURM_STEP_NODELIST: {torn!r} names no host; set MASTER_ADDR to rank 0's host")
        with pytest.raises(UserError, match=f"^{names}$"):
            first_host(torn)
    for wrong in ("MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        with pytest.raises(UserError, match=rf"^{wrong}: '-1' in the environment; allowed: a whole number, or unset"):
            found_place(TORCH | {wrong: "-1"})
    for variables in (TORCH, SLURM):
        with pytest.raises(UserError, match=r"^MASTER_PORT: 65536 in the environment; allowed: 1 to 65535$"):
            found_place(variables | {"MASTER_PORT": "65536"})
    for name, value in TORCH.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(UserError, match=r"train_acdmd\.processes: 2 in params\.yaml, but 4 processes were started; set"),
        place_of("train_acdmd", 2, RUN, Path()),
    ):
        pass


def test_an_address_at_which_rank_0_cannot_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stage starts the others, and where srun started all: rank 0 alone listens."""
    alone = preset("smoke", {"run": {"threads": 1, "gpus_per_node": 1}}).run
    monkeypatch.setattr(launch, "require_allocation", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = rf"^MASTER_PORT: the first process cannot answer at 127\.0\.0\.1:{port} \(.*EADDRINUSE.*; set another"
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=said), place_of("train_acdmd", 2, alone, Path()):
            pass
        for name, value in (SLURM | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=said), join("train_acdmd", 4, alone):
            pass
        PartialState._reset_state()  # the process would have ended
    for name in SLURM:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.1")  # of no machine (RFC 5737)
    here = r"^MASTER_ADDR: 192\.0\.2\.1 is no address of this node \(.*\); set MASTER_ADDR to one by which the other"
    with pytest.raises(UserError, match=here), place_of("train_acdmd", 2, alone, Path()):
        pass


class Clock:
    """Time that passes only while somebody waits."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Hung:
    """A process that ends by SIGKILL alone."""

    clock: Clock
    args: tuple[str, ...]
    signals: list[str] = field(default_factory=list)

    def wait(self, timeout: float | None = None) -> int:
        if "kill" in self.signals:
            return -9
        assert timeout is not None
        self.clock.now += timeout
        raise subprocess.TimeoutExpired(self.args, timeout)

    def terminate(self) -> None:
        self.signals.append("terminate")

    def kill(self) -> None:
        self.signals.append("kill")


def test_hung_processes_have_one_time_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(launch, "time", clock)
    hung: list[Any] = [Hung(clock, ("python",)) for _ in range(7)]
    with launch._ended_together() as children:
        children += hung
    assert clock.now == launch.LINGER
    assert all(child.signals == ["kill"] for child in hung)
    step: Any = Hung(clock, ("srun", "python"))
    with launch._ended_together() as children:
        children += [*hung, step]
    assert clock.now == 3 * launch.LINGER  # srun has as long again, to end its tasks
    assert step.signals == ["terminate", "kill"]


def test_another_sharding_than_the_params_is_refused() -> None:
    by_accelerate = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    require_sharding("train_acdmd", "none", {})
    require_sharding("train_acdmd", "base", {})
    require_sharding("train_acdmd", "base", by_accelerate)
    with pytest.raises(UserError, match=r"train_acdmd\.sharding: none .* --use_fsdp; set train_acdmd\.sharding: base"):
        require_sharding("train_acdmd", "none", by_accelerate)
    with pytest.raises(UserError, match=r"has FSDP_VERSION=2, but accelerate .* with 1; start with --fsdp_version 2"):
        require_sharding("train_acdmd", "base", by_accelerate | {"FSDP_VERSION": "1"})


def test_one_process_is_no_group_and_a_launchers_place_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with place_of("train_acdmd", 1, RUN, Path()) as place:
        assert place is None and "WORLD_SIZE" not in os.environ
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with place_of("train_acdmd", 4, RUN, Path()) as place:
        assert place == found_place(SLURM)
        assert os.environ["RANK"] == "3" and os.environ["MASTER_ADDR"] == "gpu07"
        assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "RANK" not in os.environ and "OMP_NUM_THREADS" not in os.environ


def test_a_process_that_ends_before_it_takes_part_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here one that cannot import torch; rank 0 would wait for it for an hour otherwise."""
    (tmp_path / "torch.py").write_text("raise SystemExit('no torch on this node')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(launch, "LINGER", 600.0)  # the fault ends the others, not the time
    with (
        pytest.raises(RtdmdError, match=r"^a process of the run ended with \d+ before it took part; its own e"),
        place_of("train_acdmd", 3, RUN, REPOSITORY),
    ):
        pass
    assert "no torch on this node" in capfd.readouterr().err
