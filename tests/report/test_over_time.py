"""The report on the training: curves, scores of the watched student, and the image log."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.images import png_bytes
from rtdmd.report.over_time import PANEL_WIDTH, curves, evenly, image_log, panels, read_curves, strict_by_tag, watched

HEAD = "epoch,suite,prompt_id,index,tag,strict,background,cells\n"


def test_curves_keep_gaps_and_name_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    path.write_text("epoch,a,b\n1,0.5,\n2,,3\n")
    assert read_curves(path) == ("epoch", {"epoch": [1, 2], "a": [0.5, None], "b": [None, 3]})
    path.write_text("epoch,a\n1,oops\n")
    with pytest.raises(UserError, match=r"curves\.csv: a field is not a number"):
        read_curves(path)
    path.write_text("")
    with pytest.raises(UserError, match=r"curves\.csv:1: the columns' names are expected"):
        read_curves(path)


def test_a_column_that_never_changes_is_a_sentence_and_no_chart(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    path.write_text("epoch,zero,loss,gap\n1,0,3,\n2,0,2,\n3,0,1,5\n")
    found = curves({"Stage two": path})
    assert found is not None
    assert re.findall(r'aria-label="([^"]+)"', found.body) == ["loss over epoch"]
    assert "<p>The same at every step: zero 0.</p>" in found.body
    path.write_text("epoch\n")
    assert curves({"Stage two": path}) is None


def test_looks_are_the_share_of_right_images_by_tag(tmp_path: Path) -> None:
    """In the tags' own order; a tag that one evaluation lacks has a gap there."""
    path = tmp_path / "watched_parses.csv"
    rows = ("0,own,1,0,colors,1", "0,own,1,1,colors,0", "0,own,2,0,two_object,1", "30,own,1,0,colors,1")
    path.write_text(HEAD + "".join(f"{row},0,.........\n" for row in rows))
    columns = {"epoch": [0.0, 30.0], "own/two_object strict": [1.0, None], "own/colors strict": [0.5, 1.0]}
    assert strict_by_tag(path) == ("epoch", columns)
    assert list(strict_by_tag(path)[1]) == list(columns)
    scores = tmp_path / "watched.csv"
    scores.write_text("epoch,own/clipscore\n0,0.5\n30,0.75\n")
    found = watched({"Stage two": (scores, path)})
    assert found is not None
    labels = ["own/clipscore over epoch", "own/colors strict over epoch"]
    assert re.findall(r'aria-label="([^"]+)"', found.body) == labels
    path.write_text(HEAD + "0,own,1,0,colors,yes,0,.........\n")
    with pytest.raises(
        UserError, match=r"watched_parses\.csv: a line is no record of an image \(.*; run the training stage again"
    ):
        strict_by_tag(path)


def log_of(path: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    with zipfile.ZipFile(path, "w") as log:
        for name, (height, width) in sizes.items():
            log.writestr(name, png_bytes(np.full((height, width, 3), 9, np.uint8)))
    return path


def test_panels_are_few_in_order_and_no_wider_than_the_page_shows(tmp_path: Path) -> None:
    sizes = {f"image-log-{number:08d}.png": (20, 30) for number in range(100, 1000, 100)}
    log = log_of(tmp_path / "log.zip", sizes | {"image-log-00001000.png": (300, 2 * PANEL_WIDTH)})
    found = list(panels(log))
    assert [number for number, _ in found] == [100, 300, 500, 600, 800, 1000]
    assert [picture.size for _, picture in found[-2:]] == [(30, 20), (PANEL_WIDTH, 150)]
    shown = image_log({"Stage one": (log, "iteration")})
    assert shown is not None
    assert shown.body.count("<img") == 6 and "<figcaption>Stage one after 1000 iterations</figcaption>" in shown.body
    assert image_log({"Stage one": (log_of(tmp_path / "none.zip", {}), "iteration")}) is None


def test_a_few_names_are_all_shown() -> None:
    assert [evenly("abcde"[:count], 3) for count in range(6)] == [
        [],
        ["a"],
        ["a", "b"],
        ["a", "b", "c"],
        ["a", "b", "d"],
        ["a", "c", "e"],
    ]


def test_what_is_no_image_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / "image_log.zip"
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"image_log\.zip: no image log \(.*; run the training stage again"):
        list(panels(path))
    with pytest.raises(UserError, match=r"image_log\.zip: other\.png is not a panel; run the training"):
        list(panels(log_of(path, {"other.png": (2, 2)})))
    with zipfile.ZipFile(path, "w") as log:
        log.writestr("image-log-00000001.png", b"no picture")
    with pytest.raises(UserError, match=r"image_log\.zip: no image log \(cannot identify"):
        list(panels(path))
