"""Fixtures that several test folders share: tiny random model folders, made once a session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import dvc  # noqa: F401  # its log goes to what is standard output when it is first imported: not that of one test
import pytest

if TYPE_CHECKING:
    from tests.publish.advice import Here


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
