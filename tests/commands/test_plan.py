"""`rtdmd plan --set`: a setting over the params that are planned."""

from __future__ import annotations

import pytest

from rtdmd.cli import main
from rtdmd.commands.plan import changes_of
from rtdmd.common.errors import UserError


def test_a_setting_is_a_key_and_a_value() -> None:
    assert changes_of("adapter.mode=full") == {"adapter": {"mode": "full"}}
    assert changes_of("train_rtdmd.candidate_steps=[0, 2]") == {"train_rtdmd": {"candidate_steps": [0, 2]}}
    assert changes_of("model.revision=null") == {"model": {"revision": None}}


@pytest.mark.parametrize("setting", ["adapter.mode", "adapter.mode=[full"])
def test_what_is_no_setting_is_refused(setting: str) -> None:
    with pytest.raises(UserError, match=r"--set adapter\.mode"):
        changes_of(setting)


def test_an_unknown_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "world", "--set", "adapter.mod=full"]) == 2
    assert "did you mean mode?" in capsys.readouterr().err
