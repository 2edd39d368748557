"""SIGTERM and SIGUSR1: how a scheduler ends a job that it will start again.

Inside ``caught()`` either signal raises `Stopped`, which the command line turns into exit code 75. Inside
``defer_signals()`` it is noted instead and raised at the end, so that a training step or a set of outputs is finished
first. Signals after the first change nothing: a scheduler sends several, to the process and to its group.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, the same command may be run again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """A signal asked this process to end. Like KeyboardInterrupt no `Exception`, so that no library swallows it."""


@dataclass
class _State:
    received: str | None = None  # name of the first signal
    deferrals: int = 0


_state = _State()


@contextmanager
def caught() -> Iterator[None]:
    """Handle both signals inside the ``with`` (in the main thread).

    The former handlers come back afterwards, unless a signal came: a second one must not cut the exit short.
    """
    _state.received = None
    _state.deferrals = 0
    former = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, _deaf if _state.received else handler)
        _state.received = None


@contextmanager
def defer_signals() -> Iterator[None]:
    """Put a signal off to the end of the ``with``, where it raises Stopped unless an exception is under way."""
    _state.deferrals += 1
    try:
        yield
    finally:
        _state.deferrals -= 1
    if _state.received and not _state.deferrals:
        raise Stopped(f"stopped by {_state.received}")


def received() -> str | None:
    """The name of the signal that asked to end, None while none did."""
    return _state.received


def _deaf(number: int, _: FrameType | None) -> None:
    """The process is ending already."""


def _on_signal(number: int, _: FrameType | None) -> None:
    if _state.received:
        return
    _state.received = signal.Signals(number).name
    if not _state.deferrals:
        raise Stopped(f"stopped by {_state.received}")
