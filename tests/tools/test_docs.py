"""Every command that a page shows is one, and mistakes are found. `make lint` also compares what commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdmd.common.files import write_json
from rtdmd.pipeline.dvc_yaml import read_pipeline
from tools import docs, links, results
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


def test_every_link_and_every_page_that_code_names_is_there() -> None:
    assert list(links.dead_links(Path("."), docs.pages(Path(".")))) == []


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("README.md#the-stages", None),
        ("https://example.org/nothing", None),
        ("nothing.md", "nothing.md: no such file"),
        ("README.md#nothing", "README.md#nothing: README.md has no heading of that name"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(target: str, fault: str | None) -> None:
    assert links.fault(target, Path(".")) == fault


def test_the_table_of_the_demo_is_made_of_its_metrics(tmp_path: Path) -> None:
    score = {"mean": 0.8594, "ci95": 0.0154}
    model = {"steps": 4, "network_evaluations": 8, "images": 1800, "frechet": 0.0172, "strict": score}
    suite = dict.fromkeys(results.MODELS, model)
    paired = {"train_rtdmd-teacher": {"strict": {"mean": 0.212, "ci95": 0.024}}}
    write_json(tmp_path / results.METRICS, {"suites": {"heldout": suite | {"paired": paired}}})
    text = results.with_results(f"before\n{results.BEGIN}\nold\n{results.END}\nafter", tmp_path)
    assert "| **stage two (RTDMD)**, 4 steps | 8 | 85.9 ± 1.5 % | 17.2 |" in text and "old" not in text
    assert "drew 1800 images" in text and "paired: +21.2 ± 2.4 percentage points" in text
