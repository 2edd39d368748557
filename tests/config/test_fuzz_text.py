"""Mutated settings are read or refused in one line, never anything else (rounds: tests/fuzz.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdmd.config import load_params, preset
from rtdmd.config.render import params_text
from tests.mutations import mutations, outcome


@pytest.mark.parametrize("name", ["world", "sd35m"])
def test_mutated_params_are_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "params.yaml"
    seen = []
    for data in mutations(params_text(preset(name), "a test").encode(), f"params {name}", 30):
        path.write_bytes(data)
        found = outcome(lambda: load_params(path))
        seen.append(found is None)
        if found is not None:
            assert found.startswith(str(path)), found
    assert True in seen and False in seen
