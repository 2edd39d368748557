"""SIGTERM and SIGUSR1: at once, or after what is held; later signals change nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtdmd.cli import main
from rtdmd.common.signals import REQUEUE, SIGNALS, Stopped, caught, defer_signals, received


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back what `caught` leaves in place after a signal."""
    former = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_where_nothing_is_held(number: signal.Signals) -> None:
    done = []
    with pytest.raises(Stopped, match=rf"^stopped by {number.name}$"), caught():
        done.append("before")
        send(number)
        done.append("after")
    assert done == ["before"]
    send(number)  # while the process ends: changes nothing


def test_held_work_is_finished_first() -> None:
    done = []
    with pytest.raises(Stopped, match=r"^stopped by SIGUSR1$"), caught():
        with defer_signals(), defer_signals():
            send(signal.SIGUSR1)
            send(signal.SIGTERM)
            done.append(received())
        done.append("after")
    assert done == ["SIGUSR1"]


def test_an_error_in_held_work_is_the_error() -> None:
    with pytest.raises(ZeroDivisionError), caught(), defer_signals():
        send(signal.SIGTERM)
        raise ZeroDivisionError


def test_without_a_signal_the_former_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with caught(), defer_signals():
        assert received() is None
        assert all(signal.getsignal(number) is not former for number, former in zip(SIGNALS, before, strict=True))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_stopped_stage_ends_with_75_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rtdmd.stages.prepare_prompts.run", lambda root: send(signal.SIGTERM))
    assert main(["prepare_prompts"]) == REQUEUE == 75
    assert capsys.readouterr().err == "rtdmd prepare_prompts: stopped by SIGTERM; the same command starts anew\n"


def test_the_code_is_75_even_when_nobody_reads_standard_error_any_more() -> None:
    program = (
        "import os, sys, rtdmd.cli as cli\n"
        "from rtdmd.common.signals import Stopped\n"
        "def stage(_): sys.stdin.read(); raise Stopped('stopped by SIGTERM')\n"
        "cli._stage = stage\n"
        "sys.exit(cli.main(['evaluate']))"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdin is not None and child.stderr is not None
    child.stderr.close()
    child.stdin.close()
    assert child.wait(timeout=60) == 75
