"""A run's folder in which the student stands on a base of its own: two tiny random teachers of the same shapes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rtdmd.config import Params
from tests.tiny import make_tiny_teacher
from tests.workspace import make_workspace

STUDENT = "models/student"
CLIP = {"name": "clipscore", "model": "data/world/clip"}
SMALLEST: dict[str, Any] = {
    "model": {"student": {"model": f"./{STUDENT}", "revision": None}, "teacher_steps": 2},
    "adapter": {"rank": 2, "alpha": 4, "targets": "attention"},
    "train_acdmd": {"iterations": 2, "batch_size": 2, "micro_batch": 2, "save_every": 2, "panel_every": 2},
    "train_rtdmd": {"epochs": 1, "rewards": [CLIP], "fake_batch_size": 2, "micro_batch": 2},
}


def make_two_bases(root: Path, teacher: Path, clip: Path, changes: dict[str, Any] | None = None) -> Params:
    """A workspace (`tests.workspace`) with the teacher's base and, in models/student, the student's."""
    from rtdmd.config.presets import merged

    make_tiny_teacher(root / STUDENT, seed=7)
    for part in ("vae", "text_encoder", "text_encoder_2"):  # as released, but for the transformer
        shutil.rmtree(root / STUDENT / part)
        shutil.copytree(teacher / part, root / STUDENT / part)
    return make_workspace(root, teacher, clip, merged(SMALLEST, changes or {}))
