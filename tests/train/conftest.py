"""A workspace after stage one, made once; each module that trains on from it gets a copy of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def stage_one(tiny_teacher: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace after a short stage one; not to be changed."""
    from rtdmd.stages import train_acdmd
    from tests.train.workshop import make_trainable
    from tests.workspace import set_params

    folder = tmp_path_factory.mktemp("stage-one")
    make_trainable(folder, tiny_teacher, tiny_clip)
    set_params(folder, {"train_acdmd": {"generator_optimizer": {"lr": 0.02}, "fake_optimizer": {"lr": 0.02}}})
    train_acdmd.run(folder)
    return folder


@pytest.fixture(scope="module")
def root(stage_one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module's copy of it."""
    return shutil.copytree(stage_one, tmp_path_factory.mktemp("root"), symlinks=True, dirs_exist_ok=True)
