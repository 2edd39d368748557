"""`rtdmd methods`: what it prints is what the documentation says."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdmd.cli import main


def test_the_documented_lengths_are_those_of_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--lengths"]) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) > 2
    assert table in Path("docs/comparison.md").read_text(encoding="utf-8")
