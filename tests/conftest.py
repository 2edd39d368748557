"""Fixtures that several test folders share: tiny random model folders, made once a session."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import dvc  # noqa: F401  # its log goes to what is standard output when it is first imported: not that of one test
import pytest

if TYPE_CHECKING:
    from tests.publish.advice import Here


gc.set_threshold(100_000)  # torch makes a million objects that stay: to go through them for garbage takes long

LONGEST = (
    "workflow/test_agreement.py",
    "train/engine/test_resume.py",
    "rehearse/",
    "train/distributed/",
    "train/test_stage_one.py",
    "workflow/test_failures.py",
    "workflow/test_sweeps.py",
    "train/test_compile.py",
    "workflow/test_remote.py",
    "workflow/test_slurm.py",
    "plan/test_presets.py",
    "study/test_sweep.py",
    "train/engine/",
    "backbones/test_recipe.py",
    "backbones/test_stages.py",
    "methods/test_recipe.py",
    "rewards/test_recipe.py",
    "oracle/",
    "workflow/",
    "train/",
    "publish/test_gate.py",
)
"""Beginnings of the names of files that take long, the longest first, the short ones not at all."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, so that no worker is minutes behind the others when these have ended."""

    def place(item: pytest.Item) -> int:
        name = item.nodeid.removeprefix("tests/")
        return next((place for place, start in enumerate(LONGEST) if name.startswith(start)), len(LONGEST))

    items.sort(key=place)
    gc.freeze()  # what all imports have made is no garbage: `gc.collect` need not go through it again


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD3 pipeline folder."""
    from tests.tiny import make_tiny_teacher

    return make_tiny_teacher(tmp_path_factory.mktemp("models") / "teacher")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIPModel folder."""
    from tests.tiny import make_tiny_clip

    return make_tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="session")
def advice_folder(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_clip: Path) -> Path:
    """A run's folder with all that `rtdmd sample`, `import` and `publish` read. Not to be changed."""
    from tests.publish.advice import make_good

    return make_good(tmp_path_factory.mktemp("advice"), tiny_teacher, tiny_clip)


@pytest.fixture
def here(advice_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """A copy of it for one test to be refused in."""
    from tests.publish.advice import copied

    return copied(advice_folder, tmp_path / "root", monkeypatch)
