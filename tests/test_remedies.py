"""Every command that an error tells the user to run is one that there is."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.cli.parser import get_main_parser

from rtdmd.cli import build_parser
from rtdmd.experiments import TABLES
from rtdmd.pipeline.dvc_yaml import missing_file, read_pipeline

PIPELINE = read_pipeline(Path("."))
RULES = {*PIPELINE, "sweep", "upload", "sweep_variance", *(f"experiment_{name}" for name in TABLES)}
PROGRAMS = ("rtdmd", "snakemake", "git", "make", "dvc")
VALUE = "VALUE"  # what stands for a part that is filled in at run time
# What a value may be, for commands whose first argument is one.
FILLED = {
    "rtdmd VALUE": "rtdmd evaluate",
    "rtdmd import": "rtdmd import a.pt --out folder",
    "rtdmd rewards serve": "rtdmd rewards serve clipscore",
    "rtdmd train_VALUE": "rtdmd train_acdmd",
    "snakemake VALUE": "snakemake evaluate",
    "snakemake experiment_VALUE": "snakemake experiment_table_1",
}


def commands() -> Iterator[tuple[str, str]]:
    """(file, command) of every command in backticks in a string of the package, docstrings apart."""
    for path in sorted(Path("rtdmd").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        joined = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in documented or id(node) in joined:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values]
                text = "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            for command in re.findall(r"`([^`]+)`", text):
                if command.split(" ")[0] in PROGRAMS and " " in command:
                    yield path.as_posix(), command


COMMANDS = sorted(set(commands()))


def test_commands_are_found() -> None:
    assert len(COMMANDS) > 25
    assert {command.split(" ")[0] for _, command in COMMANDS} == set(PROGRAMS)


@pytest.mark.parametrize(("file", "command"), COMMANDS)
def test_a_command_in_a_message_is_one_that_there_is(file: str, command: str) -> None:
    assert file
    program, *words = shlex.split(FILLED.get(command, command).split(" > ")[0].split(" && ")[0])
    if program == "rtdmd":
        if words[-1:] == [VALUE] and words[0] in ("verify", "bench"):
            words[-1] = "1"
        build_parser().parse_args([word if word != VALUE else "1" for word in words])
    elif program == "snakemake":
        if "--profile" in words:
            assert Path("profiles", words.pop(words.index("--profile") + 1)).is_dir()
        targets = [word for word in words if not word.startswith("-") and word != "all"]
        assert all(target in RULES for target in targets), targets
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets
    elif program == "git" and words[0] == "checkout":
        assert words[1] == VALUE or Path(words[1]).exists(), words
    elif program == "dvc":
        get_main_parser().parse_args(words)


def test_a_file_that_is_the_users_is_not_asked_of_git() -> None:
    says = missing_file("data/prompts/drawbench.txt", PIPELINE)
    assert says == (
        "data/prompts/drawbench.txt: no such file; put it there, or name another in prepare_prompts of params.yaml"
        " (docs/configuration.md says how)"
    )
    assert missing_file("data/prompts", PIPELINE).endswith("it belongs to the repository: `git checkout data/prompts`")
    assert missing_file("results/evaluate/metrics.json", PIPELINE).endswith("; `snakemake evaluate` makes it")
    assert missing_file("data/world/clip", PIPELINE).endswith(
        "belongs to the repository: `git checkout data/world/clip`"
    )
