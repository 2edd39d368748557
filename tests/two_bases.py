"""A run's folder in which the student stands on a base of its own: two tiny random transformers of one shape."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rtdmd.config import Params
from tests.tiny import tiny_pipeline
from tests.workspace import make_workspace

STUDENT = "models/student"
CLIP = {"name": "clipscore", "model": "data/world/clip"}
SMALLEST: dict[str, Any] = {
    "model": {"student": {"model": f"./{STUDENT}", "revision": None}, "teacher_steps": 2},
    "adapter": {"rank": 2, "alpha": 4, "targets": "attention"},
    "train_acdmd": {"iterations": 2, "batch_size": 2, "micro_batch": 2, "save_every": 2, "image_log_every": 2},
    "train_rtdmd": {"epochs": 1, "rewards": [CLIP], "fake_batch_size": 2, "micro_batch": 2},
}


def make_student_base(folder: Path, teacher: Path) -> Path:
    """A tiny base with the teacher's parts but for the transformer, as step-distilled models are released."""
    shutil.copytree(teacher, folder)
    pipeline = tiny_pipeline(seed=7)
    pipeline.transformer.save_pretrained(folder / "transformer", safe_serialization=True)
    return folder


def make_two_bases(root: Path, teacher: Path, clip: Path, changes: dict[str, Any] | None = None) -> Params:
    """A workspace (`tests.workspace`) with the teacher's base and, in models/student, the student's."""
    from rtdmd.config.presets import merged

    make_student_base(root / STUDENT, teacher)
    return make_workspace(root, teacher, clip, merged(SMALLEST, changes or {}))
