"""Resume is exact whatever ends a run: five kills and both signals at random moments (`python -m tests.train.faults`
does twenty)."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rtdmd.common.signals import SIGNALS
from rtdmd.train.engine import checkpoint
from tests.train.workshop import make_trainable
from tests.workspace import REPOSITORY, set_params


def test_ended_at_random_moments_both_stages_give_the_bytes_of_a_run_left_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.faults", "--kills", "5", "--seed", "3"],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    ends = [line.split("|")[2].strip() for line in done.stdout.splitlines() if line.startswith("| ") and "SIG" in line]
    assert ends.count("SIGKILL") == 10 and ends.count("SIGTERM") == ends.count("SIGUSR1") == 2, done.stdout
    assert done.stdout.count("the same bytes as the run left alone") == 2


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_whole_group_saves_although_the_log_died(
    tiny_teacher: Path, tiny_clip: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As a scheduler ends a job: the shell and `tee` die at once, and the stage goes on to its checkpoint."""
    make_trainable(tmp_path, tiny_teacher, tiny_clip)
    set_params(tmp_path, {"train_acdmd": {"iterations": 2000, "save_every": 500}})
    command = f"{sys.executable} -m rtdmd train_acdmd 2>&1 | tee log"
    shell = subprocess.Popen(["sh", "-c", command], cwd=tmp_path, start_new_session=True)
    while not (begun := journal_lines(tmp_path)):
        assert shell.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    os.killpg(shell.pid, number)
    assert shell.wait() == -number
    with (tmp_path / ".rtdmd/locks/train_acdmd").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held by the stage until it has ended
    (run,) = (tmp_path / ".rtdmd/runs").glob("train_acdmd-*")
    found = checkpoint.load(run)
    assert found is not None and begun <= found.step < 2000
    assert found.journal == (run / checkpoint.JOURNAL).read_text() and found.journal.count("\n") == found.step
    assert not list((tmp_path / "results/train_acdmd").glob(".partial-*"))


def journal_lines(root: Path) -> int:
    """Steps done so far."""
    return sum(path.read_text().count("\n") for path in root.glob(".rtdmd/runs/train_acdmd-*/journal.jsonl"))
