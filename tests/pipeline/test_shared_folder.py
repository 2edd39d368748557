"""A folder of several people: what one of them cannot write is named before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rtdmd.cli import main
from rtdmd.common.errors import UserError
from rtdmd.pipeline import stage
from rtdmd.pipeline.shared_folder import refuse_unwritable


@contextmanager
def another_user() -> Iterator[None]:
    """What root may do regardless, `nobody` may not."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("name", [".dvc/tmp/lock", ".rtdmd/locks/report", "results/report", "dvc.lock"])
def test_what_another_user_made_is_named_with_the_remedy(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in path.parents:
        if folder.is_relative_to(tmp_path):
            folder.chmod(0o777)
        elif folder.stat().st_uid == os.geteuid() and folder.name.startswith(("pytest", "popen")):
            folder.chmod(0o755)  # so that the other user comes as far as this test's folder
    path.touch()
    path.chmod(0o444)
    with another_user(), pytest.raises(UserError) as raised:
        refuse_unwritable(tmp_path)
    assert str(raised.value) == (
        f"{path}: this user may not write it; in a folder that several people share, whoever made it runs `chmod -R"
        " g+rwX .` here, and all of you work with `umask 002`"
    )
    path.chmod(0o666)
    with another_user():
        refuse_unwritable(tmp_path)


def test_a_stage_that_may_not_write_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", ".rtdmd/locks/report")

    monkeypatch.setattr(stage, "_only_one", refuse)
    monkeypatch.setattr(stage, "_hash_inputs", lambda *_: {})
    assert main(["report"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("rtdmd report: .rtdmd/locks/report: Permission denied; in a folder that")
    assert "`umask 002`" in said and said.count("\n") == 1
