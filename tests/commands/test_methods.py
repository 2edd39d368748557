"""`rtdmd methods`: what it prints."""

from __future__ import annotations

import pytest

from rtdmd.cli import main
from rtdmd.methods import METHODS


def test_every_method_has_a_length_within_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--lengths"]) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    lengths = {name: int(length) for names, length in rows for name in names.split(", ")}
    assert lengths.keys() == METHODS.keys()
    assert (lengths["rtdmd"], lengths["rtdmd-corrected"], lengths["draft-1"]) == (118, 36, 202)
