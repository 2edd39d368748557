"""The image log as an output: its members, its bytes, and an image grid that is gone."""

from __future__ import annotations

import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.images import save_png
from rtdmd.train.engine.image_log import ImageLog
from rtdmd.train.engine.trackers import image_log_path


def pictures(folder: Path, every: int) -> ImageLog:
    """Of a run whose image grids are drawn already."""
    return ImageLog(every, folder, *(Mock() for _ in range(5)))


def test_the_log_has_the_panels_that_were_due_and_no_time_in_it(tmp_path: Path) -> None:
    for number in (2, 4, 6):
        save_png(image_log_path(tmp_path, number), np.full((3, 4, 3), number, np.uint8))
    for out in ("log.zip", "again.zip"):
        pictures(tmp_path, 2).write(5, tmp_path / out)
    with zipfile.ZipFile(tmp_path / "log.zip") as log:
        members = log.infolist()
        assert log.read("image-log-00000004.png") == image_log_path(tmp_path, 4).read_bytes()
    assert [member.filename for member in members] == ["image-log-00000002.png", "image-log-00000004.png"]
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    assert (tmp_path / "log.zip").read_bytes() == (tmp_path / "again.zip").read_bytes()


def test_a_run_without_panels_has_an_empty_log(tmp_path: Path) -> None:
    pictures(tmp_path, 0).write(5, tmp_path / "log.zip")
    with zipfile.ZipFile(tmp_path / "log.zip") as log:
        assert log.namelist() == []


def test_a_panel_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"image-log-00000003\.png: the image grid after 3 steps is gone; `rm -r .*`, then run"
    ):
        pictures(tmp_path, 3).write(4, tmp_path / "log.zip")
