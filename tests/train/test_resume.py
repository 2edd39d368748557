"""Resume is exact whatever ends a run: five kills and both signals at random moments (`python -m tests.train.faults`
does twenty)."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.workspace import REPOSITORY


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
