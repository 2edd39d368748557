"""How much of the package one epoch of stage two runs: what a reader has to follow from `RtdmdTrainer.step` down."""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from rtdmd.stages import train_rtdmd
from rtdmd.train.rtdmd import RtdmdTrainer
from tests.workspace import REPOSITORY, set_params

FUNCTIONS, FILES = 97, 18
"""16 and one of them since a rollout lies on the host and rewards pull at the images: train/rollout.py, the panel. One
file since the backbones share a class: backbones/parts.py."""
PACKAGE = f"{REPOSITORY / 'rtdmd'}/"
SCORERS = ("rewards/clip.py", "rewards/preprocessing.py", "rewards/protocol.py", "rewards/scorers/", "world/")
"""Behind `RewardModels.scoring`, and chosen by params.yaml: no part of the algorithm."""


def test_an_epoch_runs_few_functions_of_few_files(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named functions, on the smoke settings; comprehensions and lambdas belong to those that they are in."""
    run: dict[str, set[str]] = defaultdict(set)  # by file
    real = RtdmdTrainer.step

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            run[code.co_filename.removeprefix(PACKAGE)].add(code.co_qualname)

    def step(*arguments: Any) -> dict[str, float]:
        sys.setprofile(watch)
        try:
            return real(*arguments)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(RtdmdTrainer, "step", step)
    set_params(root, {"train_rtdmd": {"epochs": 1}})
    shutil.rmtree(root / "results/train_rtdmd", ignore_errors=True)
    train_rtdmd.run(root)
    run = {file: names for file, names in run.items() if not file.startswith(SCORERS)}
    assert {"train/rtdmd.py", "train/losses.py", "train/adapters.py"} <= run.keys()
    functions = sorted(f"{file}: {name}" for file, names in run.items() for name in names)
    assert len(functions) <= FUNCTIONS, functions
    assert len(run) <= FILES, sorted(run)
