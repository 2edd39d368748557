"""Other programs that this package asks: one that hangs is stopped, and said in one line."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from rtdmd.common.errors import RtdmdError

QUESTION_SECONDS = 600.0
"""For what answers a question (git, sinfo, nvidia-smi): seconds at most, and minutes where the file system is busy."""


@contextmanager
def limited(then: str) -> Iterator[None]:
    """Around `subprocess.run` with a ``timeout``: RtdmdError that names the command and says what ``then``, where it
    did not end in time. `subprocess.run` has stopped it by then."""
    try:
        yield
    except subprocess.TimeoutExpired as error:
        command = error.cmd if isinstance(error.cmd, str) else shlex.join(map(str, error.cmd))
        raise RtdmdError(f"`{command}` did not end in {error.timeout:g} s and was stopped; {then}") from error
