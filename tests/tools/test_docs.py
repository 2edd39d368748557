"""Every command that a page shows is one, and mistakes are found. `make lint` also compares what commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdmd.pipeline.dvc_yaml import read_pipeline
from tools import docs
from tools.docs import Shown


def test_every_command_on_the_pages_is_one() -> None:
    found = [command for page in docs.pages(Path(".")) for command in docs.shown(page)]
    assert len(found) > 150
    assert [f"{command}: {fault}" for command in found if (fault := docs.fault(command))] == []


def test_commands_are_found_in_blocks_and_in_the_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Run `make demo`, or `dvc repro --single-item <stage> \\| tee log`.\n"
        "```\nrtdmd params smoke > params.yaml  # a comment\nsnakemake; echo\n```\n```yaml\nmake: 1\n```\n"
    )
    assert [(one.line, one.text, one.whole) for one in docs.shown(page)] == [
        (1, "make demo", False),
        (1, "dvc repro --single-item stage", False),
        (3, "rtdmd params smoke", True),
        (4, "snakemake", True),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("make demos", "no target of the Makefile: demos"),
        ("snakemake train_acmd", "no target of the rules: train_acmd"),
        ("snakemake --corse 1", "unrecognized arguments: --corse"),
        ("rtdmd compare train_acdmd", "the following arguments are required"),
        ("rtdmd publsh", "invalid choice: 'publsh'"),
        ("dvc repro --forced-downstream", "refused"),
        ("python -m tools.benches", "no module tools.benches"),
        ("pytest tests/tools/test_dogs.py", "no file tests/tools/test_dogs.py"),
    ],
)
def test_what_is_no_command_is_found(text: str, fault: str) -> None:
    assert fault in (docs.fault(Shown(Path("page.md"), 1, text, True)) or "")


def test_a_mention_may_leave_out_arguments() -> None:
    assert docs.fault(Shown(Path("page.md"), 1, "rtdmd compare", False)) is None
    assert "required" in (docs.fault(Shown(Path("page.md"), 1, "rtdmd compare", True)) or "")


def test_what_a_command_prints_is_written_and_compared() -> None:
    stale = "before\n```\n$ rtdmd methods rtdmd\nsomething else\n```\nafter\n"
    now = docs.with_outputs(stale)
    assert "something else" not in now and "$ rtdmd methods rtdmd\nrtdmd: " in now
    assert docs.with_outputs(now) == now
    assert "show it without $" in docs.with_outputs("```\n$ rtdmd demo\n```")


def test_the_readme_lists_the_stages_and_the_number_of_outputs_is_true() -> None:
    pipeline = read_pipeline(Path("."))
    assert docs.stage_rows(Path("README.md").read_text(encoding="utf-8")) == list(pipeline)
    count = sum(len(stage.outs) for stage in pipeline.values())
    assert f"{count} of {count} outputs" in Path("docs/reproducibility.md").read_text(encoding="utf-8")
