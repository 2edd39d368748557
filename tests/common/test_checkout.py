"""Commands that run what is in tools/: found beside the package, one line where the package came without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdmd.cli import main
from rtdmd.common import checkout

COMMANDS = {
    "bench": ["bench"],
    "variance": ["variance"],
    "verify --study": ["verify", "--study", "new"],
    "world": ["world", "vae"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_installed_package_without_tools_says_where_the_command_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert main(COMMANDS[command]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"rtdmd: `rtdmd {command}` needs a checkout of the repository (an installed package has no tools/); in the"
        f" checkout's root folder: `python -m rtdmd {command}`\n"
    )


def test_a_part_that_the_world_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["world", "sound"]) == 2
    assert capsys.readouterr().err == (
        "rtdmd: world sound: no such part; allowed: text, vae, clip, teacher, imperfect, assemble\n"
    )
