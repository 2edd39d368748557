"""requirements.lock serves every version of Python that pyproject.toml allows, as the packages' metadata say."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

VERSIONS = ("3.11", "3.12", "3.13")
PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", Path("requirements.lock").read_text(encoding="utf-8"), re.MULTILINE))
WITH_CUDA = re.compile(r"(cuda|nvidia)-|triton$")
"""What torch's build for GPUs pins itself; the lock serves its build for CPUs too."""


def needed(python: str) -> dict[str, list[Requirement]]:
    """What the package, its extra `dev` and all that they need ask of each package under a version of Python."""
    found: dict[str, list[Requirement]] = {}
    seen = set[tuple[str, str]]()
    waiting = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]]
    while waiting:
        wish = waiting.pop()
        name = canonicalize_name(wish.name)
        found.setdefault(name, []).append(wish)
        for extra in {"", *wish.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            surroundings = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
            asked = [Requirement(text) for text in distribution(name).requires or []]
            if name == "torch":
                asked = [one for one in asked if not WITH_CUDA.match(one.name)]
            waiting += [one for one in asked if one.marker is None or one.marker.evaluate(surroundings)]
    return found


@pytest.mark.parametrize("python", VERSIONS)
def test_every_package_that_is_needed_is_pinned_at_a_version_that_fits(python: str) -> None:
    assert f"{python}.0" in SpecifierSet(PROJECT["requires-python"])
    wishes = needed(python)
    assert sorted(wishes.keys() - PINS.keys()) == []
    assert sorted(PINS.keys() - wishes.keys()) == []
    wrong = {f"{name}: {wish}" for name, asked in wishes.items() for wish in asked if PINS[name] not in wish.specifier}
    assert wrong == set()
    ranges = {name: SpecifierSet(distribution(name).metadata["Requires-Python"] or "") for name in PINS}
    refusing = {name for name, versions in ranges.items() if python not in versions}
    assert refusing == set()


def test_make_and_the_project_say_the_same_versions() -> None:
    outside = ("3.10.0", "3.14.0")
    assert not any(version in SpecifierSet(PROJECT["requires-python"]) for version in outside)
    makefile = Path("Makefile").read_text(encoding="utf-8")
    assert f"PYTHON ?= {' '.join(f'python{version}' for version in VERSIONS)}\n" in makefile
    assert f"for version in {' '.join(VERSIONS)};" in makefile
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in makefile
