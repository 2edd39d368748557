"""Every command that a page shows is one, and mistakes are found. `make lint` also compares what commands print."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdmd.common.files import write_json
from rtdmd.pipeline.dvc_yaml import read_pipeline
from tools import docs, keys, links, results
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
    shortened = "```\n$ rtdmd methods rtdmd\n" + now.splitlines()[3] + "\n...\n```"
    assert docs.with_outputs(shortened) == shortened
    assert docs.with_outputs(shortened.replace("\n...", "\nsomething else\n...")) == now.removeprefix(
        "before\n"
    ).removesuffix("\nafter\n")
    assert "show it without $" in docs.with_outputs("```\n$ rtdmd demo\n```")


def test_the_readme_lists_the_stages_and_the_number_of_outputs_is_true() -> None:
    pipeline = read_pipeline(Path("."))
    assert docs.stage_rows(Path("README.md").read_text(encoding="utf-8")) == list(pipeline)
    count = sum(len(stage.outs) for stage in pipeline.values())
    assert f"{count} of {count} outputs" in Path("docs/reproducibility.md").read_text(encoding="utf-8")


def test_the_reference_of_keys_is_that_of_the_configuration() -> None:
    assert keys.PAGE.read_text(encoding="utf-8") == keys.keys_page()


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


def test_the_tables_of_the_demo_are_made_of_its_metrics(tmp_path: Path) -> None:
    score = {"mean": 0.8594, "ci95": 0.0154, "ci95_prompts": 0.048}
    scores = {"strict": score, "lenient": score, "clipscore": score, "frechet": 0.0172, "diversity": 1.5}
    model = scores | {"steps": 4, "network_evaluations": 8, "images": 1800, "clutter": 0.006, "background_entropy": 0.9}
    model |= {"per_tag": {"strict": dict.fromkeys(results.TAGS, score)}}
    gain = {"strict": {"mean": 0.212, "ci95": 0.024, "ci95_prompts": 0.048}, "clipscore": score}
    pairs = ("train_acdmd-teacher", "train_rtdmd-train_acdmd", "train_rtdmd-teacher")
    figures = {"kl": score, "optimum": score, "excess": score}
    suite = dict.fromkeys([*results.MODELS, "reference"], model) | {
        "paired": dict.fromkeys(pairs, gain),
        "etas": {"1": model | {"minus_trained": gain}},
        "frontier": {"models": dict.fromkeys(results.MODELS, figures)},
    }
    write_json(tmp_path / results.METRICS, {"suites": {"heldout": suite}})
    page = "\n".join(f"before\n{begin}\nold\n{end}\nafter" for begin, end in map(results.marks, results.TABLES))
    text = results.with_results(page, tmp_path)
    assert "old" not in text and text.count("before") == text.count("after") == len(results.TABLES)
    assert "| **stage two (RTDMD)**, 4 steps | 8 | 85.9 ± 1.5 % | 17.2 |" in text
    assert "drew 1800 images" in text and "paired: +21.2 ± 2.4 percentage points" in text
    assert f"steps | 8 | 0.859 ± 0.015 | {' | '.join(['0.86'] * 6)} | 0.859 | 17.2 | 1.50 |" in text
    assert f"| held-out world images |  | 0.859 | {' | '.join(['0.86'] * 6)} | 0.859 | 17.2 | 1.50 |" in text
    assert "**stage two minus teacher +0.212 ± 0.024**\n(± 0.048 over captions)." in text
    assert "| 0.86 ± 0.02 | 0.86 | 0.86 ± 0.02 | 0.6 % | 0.90 |" in text
    assert "| 1 | 0.859 ± 0.015 | +0.212 ± 0.024 | 0.859 ± 0.015 | +0.859 ± 0.015 |" in text
