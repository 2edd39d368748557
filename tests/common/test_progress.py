"""Progress: drawn over on a terminal, whole lines in a log file, few of them."""

from __future__ import annotations

import io
import re
import sys

import pytest

from rtdmd.common import progress as module
from rtdmd.common.progress import progress

LINE = r"train: (\d+)/8 \[00:0\d<[\d:?]+, [ \d.?]+(it/s|s/it)(, loss=0\.\d+)?\]"


class Terminal(io.StringIO):
    """Standard error of a person."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO, every: float) -> str:
    """What a run of eight steps leaves, of which two were done before."""
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(module, "EVERY", every)
    bar = progress(initial=2, total=8, desc="train")
    for step in range(2, 8):
        bar.set_postfix(loss=f"0.{step}", refresh=False)
        bar.update()
    bar.close()
    return stderr.getvalue()


@pytest.mark.parametrize(("every", "steps"), [(0.0, [2, 3, 4, 5, 6, 7, 8, 8]), (1e6, [2, 8])])
def test_a_log_file_gets_whole_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, every: float, steps: list[int]
) -> None:
    text = drawn(monkeypatch, io.StringIO(), every)
    assert "\r" not in text and text.endswith("loss=0.7]\n")
    found = [re.fullmatch(LINE, line) for line in text.splitlines()]
    assert [int(match[1]) for match in found if match] == steps and all(found), text


def test_a_terminal_gets_one_line_that_is_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(monkeypatch, Terminal(), 0.0)
    assert text.count("\n") == 1 and text.count("\r") >= 2 and "8/8" in text


def test_items_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    assert list(progress("abc", desc="letters", unit="letter")) == ["a", "b", "c"]
    assert log.getvalue().splitlines()[-1].startswith("letters: 3/3 [")
