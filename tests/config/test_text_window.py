"""A prompt that the teacher's text encoders would cut is refused when the settings are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rtdmd.cli import main
from rtdmd.common.errors import UserError
from rtdmd.config import Params, load_params, preset
from rtdmd.config.render import params_text
from rtdmd.config.text_window import check_prompt, windows
from rtdmd.rehearse.tokenizers import WORDS
from tests.tiny import MAX_TOKENS

REPOSITORY = Path(__file__).parents[2]


def with_prompt(name: str, prompt: str) -> Params:
    return preset(name, {"publish": {"prompt": prompt}})


def test_a_local_tokenizer_counts_exactly(tiny_teacher: Path, tmp_path: Path) -> None:
    """The tiny tokenizer has one token for each of its words, and two mark the ends."""
    shutil.copytree(tiny_teacher, tmp_path / "data/world/teacher")
    fits = " ".join(WORDS[: MAX_TOKENS - 2])
    assert windows(with_prompt("world", fits), tmp_path) == {"tokenizer": MAX_TOKENS, "tokenizer_2": MAX_TOKENS}
    check_prompt(with_prompt("world", fits), tmp_path)
    says = rf"publish\.prompt: {MAX_TOKENS + 1} tokens or more .* data/world/teacher's tokenizer reads {MAX_TOKENS};"
    with pytest.raises(UserError, match=says):
        check_prompt(with_prompt("world", f"{fits} red"), tmp_path)


def test_params_check_refuses_it(
    tiny_teacher: Path,
    tiny_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(tiny_teacher, tmp_path / "data/world/teacher")
    shutil.copytree(tiny_clip, tmp_path / "data/world/clip")
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(params_text(with_prompt("world", "red " * MAX_TOKENS), "a test"))
    assert main(["params", "check"]) == 2
    assert capsys.readouterr().err.startswith("rtdmd: publish.prompt: 14 tokens or more")
    Path("params.yaml").write_text(params_text(with_prompt("world", "red " * (MAX_TOKENS - 2)), "its advice"))
    assert main(["params", "check"]) == 0


def test_the_committed_world_reads_its_prompt() -> None:
    load_params(REPOSITORY / "params.yaml")
    assert windows(preset("world"), REPOSITORY) == {"tokenizer": 13, "tokenizer_2": 13}


@pytest.mark.parametrize(
    ("name", "words", "refused"),
    [
        ("sd35m", 75, False),
        ("sd35m", 76, True),
        ("flux1-dev", 75, False),
        ("flux1-dev", 76, True),
        ("flux2-klein-4b", 511, False),
        ("flux2-klein-4b", 512, True),
    ],
)
def test_of_a_teacher_on_the_hub_the_family_is_known(name: str, words: int, refused: bool, tmp_path: Path) -> None:
    params = with_prompt(name, "cat " * words)
    if not refused:
        check_prompt(params, tmp_path)
        return
    with pytest.raises(UserError, match=r"publish\.prompt: \d+ tokens or more .* reads (77|512); shorten it"):
        check_prompt(params, tmp_path)
