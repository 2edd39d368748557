"""Are the commands on the pages commands, and do they print what is shown?

    python -m tools.docs            one line for each that is not, and exit code 1
    python -m tools.docs --write    what the commands print is written into the pages (`make docs`)

Every command in a block, and in `code` within the text, is given to the parser of its program: `rtdmd`, `snakemake` and
its targets, `dvc`, `make`, `python -m`, `pytest`. A block that begins with `$ rtdmd ...` shows all that the command
prints; it is run, so it has to be cheap and the same everywhere. A line `...` stands for lines that are left out. The
table of rooms is made of the import contract (tools/rooms.py), the tables of the demo of its metrics
(tools/results.py), docs/keys.md of the configuration's classes (tools/keys.py). Every link has to lead somewhere
(tools/links.py).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.keys import PAGE, keys_page
from tools.links import dead_links
from tools.results import with_results
from tools.rooms import with_rooms

PAGES = ("README.md", "CONTRIBUTING.md", "data/prompts/README.md", "docs/*.md", "docs/evidence/*.md")
PROGRAMS = ("rtdmd", "snakemake", "dvc", "make", "python", "pytest")
RUN = ("plan", "methods", "params", "experiments")  # commands of rtdmd that a block with `$` may show
UNFINISHED = ("arguments are required", "expected one argument", "expected at least one argument")
FENCE = re.compile(r"^```(\w*)\s*$")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FIRST = re.compile(r"(\w+)(?=[\s;|&]|$)")
SEPARATORS = set("();<>|&")


@dataclass(frozen=True)
class Shown:
    """A command on a page: whole in a block, or mentioned in the text, where arguments may be left out."""

    page: Path
    line: int
    text: str
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: `{self.text}`"


def pages(root: Path) -> list[Path]:
    return [path for pattern in PAGES for path in sorted(root.glob(pattern))]


def shown(page: Path) -> Iterator[Shown]:
    """Every command of a page."""
    fence: str | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if found := FENCE.match(line):
            fence = found[1] if fence is None else None
        elif fence == "":
            yield from (Shown(page, number, text, True) for text in commands(line.removeprefix("$ ")))
        elif fence is None:
            spans = (text for span in SPAN.findall(line) for text in commands(span.replace("\\|", "|")))
            yield from (Shown(page, number, text, False) for text in spans)


def commands(line: str) -> Iterator[str]:
    """The simple commands of a line of shell that begin with one of PROGRAMS."""
    if not (first := FIRST.match(line)) or first[1] not in PROGRAMS:
        return
    lexer = shlex.shlex(re.sub(r"<(\w+)>", r"\1", line), posix=True, punctuation_chars=True)
    lexer.wordchars += "@:,…[]"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= SEPARATORS:
            words.append(word)
            continue
        if words and words[0] in PROGRAMS:
            yield shlex.join(one for one in words if one != "…")
        words = []


def fault(command: Shown) -> str | None:
    """What is wrong with a command; None where its program's parser takes it."""
    program, *words = shlex.split(command.text)
    if not words or words[0].endswith(":"):
        return None  # the program's name alone, or what it says
    if program == "python":
        return _module_fault(words)
    if program == "pytest":
        return next((f"no file {word}" for word in words if "/" in word and not Path(word).exists()), None)
    if program == "make":
        targets = {word for word in words if "=" not in word and not word.startswith("-")}
        return _unknown("target of the Makefile", targets - _make_targets())
    if program == "rtdmd" and words[:1] == ["stage"]:
        return None
    said, parsed = _parse(_parser(program), words)
    if parsed is None:
        unfinished = any(text in said for text in UNFINISHED)
        return None if unfinished and not command.whole else said
    if program == "snakemake":
        return _unknown("target of the rules", {t for t in parsed.targets if "/" not in t} - _rules())
    return None


def _module_fault(words: list[str]) -> str | None:
    if words[:1] != ["-m"] or words[1] in ("pip", "rtdmd"):
        return None
    return None if importlib.util.find_spec(words[1]) else f"no module {words[1]}"


def _unknown(kind: str, names: set[str]) -> str | None:
    return f"no {kind}: {', '.join(sorted(names))}" if names else None


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> tuple[str, argparse.Namespace | None]:
    """What the parser says, and what it made of the words; None where it refuses them."""
    from dvc.cli import DvcParserError

    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        try:
            return "", parser.parse_args(words)
        except (SystemExit, DvcParserError):
            pass
    lines = [line for line in said.getvalue().splitlines() if "error" in line.lower()]
    return (lines or ["refused"])[0], None


@cache
def _parser(program: str) -> argparse.ArgumentParser:
    if program == "rtdmd":
        from rtdmd.cli import build_parser

        return build_parser()
    if program == "dvc":
        from dvc.cli.parser import get_main_parser

        return get_main_parser()
    from snakemake.cli import get_argument_parser

    return get_argument_parser()


@cache
def _make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@cache
def _rules() -> set[str]:
    from rtdmd.experiments import TABLES
    from rtdmd.pipeline.dvc_yaml import read_pipeline
    from tools.world import PARTS

    files = [Path("Snakefile"), *Path("workflow/rules").glob("*.smk")]
    named = re.findall(r"^rule (\w+):", "".join(path.read_text(encoding="utf-8") for path in files), re.MULTILINE)
    made = [*(f"pretrain_{part}" for part in PARTS), *(f"experiment_{table}" for table in TABLES)]
    return {*named, *made, *read_pipeline(Path("."))}


def with_outputs(text: str) -> str:
    """A page's text with what its `$ rtdmd ...` blocks print today."""
    return re.sub(r"^```\n\$ (.*)\n((?:(?!```).*\n)*)```$", _block, text, flags=re.MULTILINE)


def _block(found: re.Match[str]) -> str:
    program, *words = shlex.split(found[1])
    if program != "rtdmd" or words[0] not in RUN:
        return f"```\n$ {found[1]}\ncannot be run here (rtdmd {', '.join(RUN)} can): show it without $\n```"
    printed = _printed(tuple(words))
    kept = [line for line in found[2].splitlines() if line != "..."]
    if "...\n" in found[2] and set(kept) <= set(printed.splitlines()):
        return found[0]
    return f"```\n$ {found[1]}\n{printed}\n```"


@cache
def _printed(words: tuple[str, ...]) -> str:
    from rtdmd.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main(list(words))
    return printed.getvalue().rstrip()


def stage_rows(text: str) -> list[str]:
    """The stages of the README's table, in its order."""
    return re.findall(r"^\| `(\w+)` \| .* \| .* \|$", text, re.MULTILINE)


def main(write: bool) -> int:
    from rtdmd.pipeline.dvc_yaml import read_pipeline

    wrong = []
    for page in pages(Path(".")):
        wrong += [f"{command}: {said}" for command in shown(page) if (said := fault(command))]
        text = page.read_text(encoding="utf-8")
        now = keys_page() if page == PAGE else with_results(with_rooms(with_outputs(text), Path(".")), Path("."))
        if write:
            page.write_text(now, encoding="utf-8")
        elif now != text:
            wrong.append(f"{page}: what is made of the code is not what is shown; `make docs` writes it")
    wrong += dead_links(Path("."), pages(Path(".")))
    if stage_rows(Path("README.md").read_text(encoding="utf-8")) != list(read_pipeline(Path("."))):
        wrong.append("README.md: the table of stages is not dvc.yaml's")
    print(
        "\n".join(wrong) or "every command on the pages is one and prints what is shown, and every link leads somewhere"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main("--write" in sys.argv))
