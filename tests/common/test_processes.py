"""A program that hangs is stopped, and the line names it and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rtdmd.common.errors import RtdmdError
from rtdmd.common.processes import limited
from rtdmd.pipeline import provenance
from rtdmd.pipeline.provenance import git_state


def test_a_program_that_hangs_is_one_line() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    says = r"time\.sleep\(600\)'` did not end in 0\.\d+ s and was stopped; start it again$"
    with pytest.raises(RtdmdError, match=says), limited("start it again"):
        subprocess.run(command, check=False, timeout=0.1)


def test_a_git_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(provenance.subprocess, "run", hangs)
    with pytest.raises(RtdmdError, match=rf"^`git rev-parse HEAD` did not end in 600 s .* about {tmp_path}: when it"):
        git_state(tmp_path)
