"""Thousands of mutated settings: each is accepted, written and read back alike, or refused in a line that names a key.

`FUZZ_ROUNDS=7000 pytest -n0 tests/config/test_fuzz.py` is the long way.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from rtdmd.common.errors import UserError
from rtdmd.config import PRESETS, Params, parse_params
from rtdmd.config.load import validate
from rtdmd.config.render import params_text
from tests.config.mutate import mutated, paths
from tests.fuzz import dice, rounds


def words(tree: Any) -> set[str]:
    """Every key of a tree."""
    return {str(path[-1]) for path in paths(tree)}


@pytest.mark.parametrize("name", ["smoke", "flux2-klein-9b"])
def test_fuzz_settings_are_accepted_or_refused_in_one_line_that_names_a_key(name: str) -> None:
    draw = dice(f"settings {name}")
    known = words(PRESETS[name]) | set(Params.model_fields) | {"name", "model", "policy", "offload", "socket", "base"}
    accepted = 0
    count = rounds(120)
    for _ in range(count):
        tree = mutated(PRESETS[name], draw)
        try:
            params = validate(tree)
        except UserError as error:
            said = str(error)
            assert said.startswith("params.yaml: ") and len(said.splitlines()) == 1 and said.isprintable(), repr(said)
            named = set(re.findall(r"\w+", said.split(";")[0]))
            assert named & (known | words(tree)), said
        else:
            accepted += 1
            assert parse_params(params_text(params, "a test")) == params
    assert count / 50 < accepted < count / 2


def test_fuzz_the_file_says_what_the_tree_says() -> None:
    """The same faults by way of YAML: a file is refused or read as its tree is."""
    draw = dice("settings in YAML")
    for _ in range(rounds(30)):
        tree = mutated(PRESETS["smoke"], draw)
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        try:
            params = parse_params(text)
        except UserError as error:
            assert str(error).startswith("params.yaml") and len(str(error).splitlines()) == 1, repr(str(error))
        else:
            assert params == validate(tree)
