"""Files of a folder are found by their names, and one that registers nothing is named."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rtdmd.common.discovery import discover
from rtdmd.common.errors import UserError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of two files that register a number, and a part of them that does not."""
    folder = tmp_path / "found_things"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name, value in (("zebra", 1), ("ant", 2)):
        (folder / f"{name}.py").write_text(f"THING = {value}\n")
    (folder / "_shared.py").write_text("THING = 'a part of the others'\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield folder.name
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_files_are_found_in_the_order_of_their_names(package: str) -> None:
    assert list(discover(package, "THING", int).items()) == [("ant", 2), ("zebra", 1)]


def test_a_file_that_registers_nothing_is_named(package: str) -> None:
    with pytest.raises(
        UserError, match=r"^found_things/ant\.py: OTHER = int\(\.\.\.\) is missing; see docs/extending\.md"
    ):
        discover(package, "OTHER", int)
    with pytest.raises(UserError, match=r"^found_things/ant\.py: THING = str"):
        discover(package, "THING", str)
