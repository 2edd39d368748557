"""What a message says about a model's file, and which files count as damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.model_files import bring_back, check_files, teacher_files


def test_json_that_no_model_reads_may_hold_what_python_writes(tmp_path: Path) -> None:
    """A folder of sentence-transformers has a list beside its model, a trainer's log has NaN."""
    (tmp_path / "modules.json").write_text('[{"idx": 0, "type": "CLIPModel"}]')
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"loss": NaN}]}')
    check_files(tmp_path, ["modules.json", "trainer_state.json"], "rewards: clipscore: model")


@pytest.mark.parametrize("text", ["", "{", "[" * 5000, "\ufeff{}"])
def test_what_is_no_json_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"^model\.teacher: {tmp_path}/config\.json: not JSON \(.*copy or download it"):
        check_files(tmp_path, ["config.json"], "model.teacher")


def test_what_brings_a_file_of_the_hubs_cache_back(tmp_path: Path) -> None:
    """A damaged file is a link to what was downloaded; in a folder that is wrong as a whole nothing is missing, so that
    nothing would be downloaded while it is there."""
    cache = tmp_path / "models--owner--name"
    blob, part = cache / "blobs/1234", cache / "snapshots" / ("1" * 40) / "vae"
    for folder in (blob.parent, part):
        folder.mkdir(parents=True)
    blob.write_text("")
    (part / "config.json").symlink_to(blob)
    again = "then the same command downloads it again"
    assert bring_back(part / "config.json") == f"`rm {blob}`, {again}"
    assert bring_back(part) == f"`rm -r {cache}`, {again}"
    blob.unlink()
    assert bring_back(part / "config.json") == "the same command downloads it again when the Hub can be reached"
    assert bring_back(part / "missing.json") == "the same command downloads it again when the Hub can be reached"


def test_a_users_folder_is_never_named_for_removal(tmp_path: Path) -> None:
    mine = tmp_path / "my models--old/snapshots of mine/t"
    mine.mkdir(parents=True)
    (mine / "config.json").symlink_to("elsewhere")
    for path in (mine, mine / "config.json"):
        assert bring_back(path).startswith("it lies outside this repository: copy or download it there again")
    assert bring_back(Path("data/world/teacher/vae")) == "`git checkout data/world` brings it back"


@pytest.mark.parametrize("name", ["tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"])
def test_a_file_that_was_removed_as_advised_is_missing_and_downloaded_again(
    name: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    """A folder that lacks it must not count as whole, or nothing would be downloaded."""
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_teacher, folder)
    assert name in teacher_files(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "blobs/removed")
    with pytest.raises(UserError, match=rf"model\.teacher: .*{name} is missing; "):
        teacher_files(folder)
