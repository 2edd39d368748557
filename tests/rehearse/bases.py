"""The presets' models as a rehearsal has them: at a reduced resolution, with commits, on stand-ins or on a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rtdmd.config import ModelParams, preset

COMMIT = "1" * 40


def model_of(name: str, **changes: Any) -> ModelParams:
    """Section `model` of a preset at 64 pixels, its commits filled in."""
    model = preset(name).model
    student = model.student and {"model": model.student.model, "revision": COMMIT}
    about = model.model_dump() | {"revision": COMMIT, "student": student, "resolution": 64}
    return ModelParams.model_validate(about | changes)


def on_folder(name: str, folder: Path) -> ModelParams:
    """The same on a folder, without a base of the student's."""
    return model_of(name, teacher=str(folder), revision=None, student=None)
