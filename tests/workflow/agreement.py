"""What both engines would run after one change of each kind: the agreement matrix of docs/evidence/faults.md.

`python -m tests.workflow.agreement FOLDER` works in a finished checkout (tests/workflow/conftest.py makes one) and
prints the matrix (--json: a line for each change). A change is made, both engines are asked, it is undone. DVC is
asked with `dvc repro --dry --force-downstream` (without the second word it names only where a change begins), Snakemake
with `snakemake -n`; both in this process, because most of their time is the import.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rtdmd.common.files import write_json
from rtdmd.config import load_params
from rtdmd.pipeline.dvc_yaml import StageEntry, covers, read_pipeline
from rtdmd.plan.resources import FOLDER, plan_key

SECTIONS: dict[str, Any] = {
    "run.seed": 7,
    "model.eta": 0.8,
    "adapter.alpha": 4,
    "prepare_prompts.max_characters": 1999,
    "cache_teacher.batch_size": 32,
    "train_acdmd.generator_optimizer.lr": 3e-5,
    "train_rtdmd.weights.policy": 0.5,
    "evaluate.batch_size": 6,
    "report.title": "another",
    "report.grid_prompts": 3,
    "publish.prompt": "a photo of a red circle",
    "publish.private": False,
}
"""A key of every section, and another value; no stage reads `publish.private` (the upload does)."""


@dataclass(frozen=True)
class Change:
    """One change of a checkout. `params` and `files` say where it acts; neither: no stage has to run."""

    title: str
    make: Callable[[Path], None]
    params: str = ""
    files: tuple[str, ...] = ()

    def expected(self, pipeline: dict[str, StageEntry]) -> list[str]:
        """The stages that read or make what changed, and all behind them, told by dvc.yaml alone."""
        found: list[str] = []
        for name, stage in pipeline.items():
            reads = any(covers(key.replace(".", "/"), self.params.replace(".", "/")) for key in stage.params)
            touches = any(covers(path, file) for path in (*stage.deps, *stage.outs) for file in self.files)
            behind = any(dep in pipeline[before].outs for before in found for dep in stage.deps)
            if (self.params and reads) or touches or behind:
                found.append(name)
        return found


def edit(path: str, change: Callable[[str], str], old: bool = False) -> Callable[[Path], None]:
    """Rewrite a text file; `old` gives it a time long before every result."""

    def make(root: Path) -> None:
        text = (root / path).read_text(encoding="utf-8")
        assert change(text) != text, path
        (root / path).write_text(change(text), encoding="utf-8")
        if old:
            os.utime(root / path, (1_000_000_000, 1_000_000_000))

    return make


def set_param(key: str, value: Any) -> Callable[[str], str]:
    """Another value for a dotted key, all else as it was (comments apart)."""

    def change(text: str) -> str:
        tree = yaml.safe_load(text)
        *sections, name = key.split(".")
        inner = tree
        for section in sections:
            inner = inner[section]
        inner[name] = value
        return yaml.safe_dump(tree, sort_keys=False)

    return change


def _touch(*patterns: str, time: float | None = None) -> Callable[[Path], None]:
    """Set the time of files: now, or `time`."""

    def make(root: Path) -> None:
        for path in (path for pattern in patterns for path in root.glob(pattern) if path.is_file()):
            os.utime(path, None if time is None else (time, time))

    return make


def _remove(path: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()

    return make


def _ahead(seconds: float, *patterns: str) -> Callable[[Path], None]:
    """Files of a clock that is ahead."""
    return lambda root: _touch(*patterns, time=time.time() + seconds)(root)


def _both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for change in changes:
            change(root)

    return make


def _link_results(root: Path) -> None:
    """Results become links into DVC's cache, whose objects are as old as they are."""
    edit(".dvc/config", lambda text: text.replace('"reflink,copy"', '"symlink"'))(root)
    for path in (root / ".dvc/cache/files").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    dvc("checkout", "--relink", "--quiet")
    assert any(path.is_symlink() for path in root.glob(RESULTS))


def _incomplete(root: Path) -> None:
    """Snakemake's own note of a job that was killed; the stage went on alone, and DVC recorded it."""
    name = base64.urlsafe_b64encode(MADE.encode()).decode()
    (root / ".snakemake/incomplete").mkdir(exist_ok=True)
    (root / ".snakemake/incomplete" / name).write_text("{}")


def _editors_files(root: Path) -> None:
    """What emacs, vim and a desktop leave beside the code."""
    (root / "rtdmd/train/.#losses.py").symlink_to("somebody@somewhere.1234:5678")
    for name in (".losses.py.swp", "losses.py~", ".DS_Store"):
        (root / "rtdmd/train" / name).write_bytes(b"no code")


def _remove_and_checkout(root: Path) -> None:
    """Results from DVC's cache; those in Git from Git."""
    shutil.rmtree(root / "results")
    os.system("git checkout --quiet -- results")
    dvc("checkout", "--quiet")


def _again(text: str) -> str:
    return yaml.safe_dump(yaml.safe_load(text), sort_keys=True)


RESULTS = "results/**/*"
NEW_FILE = "rtdmd/flow/another.py"
CODE, PLAIN, MADE = "rtdmd/flow/cps.py", "rtdmd/report/html.py", "results/train_acdmd/generator.safetensors"
CHANGES = [
    *(Change(f"`{key}`", edit("params.yaml", set_param(key, value)), params=key) for key, value in SECTIONS.items()),
    Change(f"code: `{CODE}`", edit(CODE, lambda text: text + "\nNEW = 1\n"), files=(CODE,)),
    Change("the same, file time in 2001", edit(CODE, lambda text: text + "\nNEW = 1\n", old=True), files=(CODE,)),
    Change(f"code: `{PLAIN}`", edit(PLAIN, lambda text: text + "\nNEW = 1\n"), files=(PLAIN,)),
    Change(f"a new file in `{Path(NEW_FILE).parent}`", lambda root: (root / NEW_FILE).touch(), files=(NEW_FILE,)),
    Change(
        "data: a file of `data/prompts`", edit("data/prompts/README.md", lambda t: t + "\n"), files=("data/prompts",)
    ),
    Change(
        "the command of `report` in dvc.yaml",
        edit("dvc.yaml", lambda text: text.replace("-m rtdmd report", "-m  rtdmd report")),
        files=("results/report/index.html",),
    ),
    Change(f"`rm {MADE}`", _remove(MADE), files=(MADE,)),
    Change(f"`{MADE}` truncated", lambda root: os.truncate(root / MADE, 1000), files=(MADE,)),
    Change("`rm -r results`", _remove("results"), files=("results/prepare_prompts/train.jsonl",)),
    Change("comments in params.yaml", edit("params.yaml", lambda text: "# a comment\n" + text.replace("#", "# so:"))),
    Change("order of keys, style of params.yaml", edit("params.yaml", _again)),
    Change("0.001 written as 1e-3", edit("params.yaml", lambda text: text.replace("0.001 ", "1.0e-3 "))),
    Change("comments in dvc.yaml", edit("dvc.yaml", lambda text: "# a comment\n" + text)),
    Change(
        "a rule's command in `workflow/rules`",
        edit("workflow/rules/stages.smk", lambda t: t.replace(" 2>&1", "  2>&1")),
    ),
    Change("`touch` of code, data and params.yaml", _touch("rtdmd/**/*", "data/**/*", "params.yaml", "dvc.yaml")),
    Change("`touch` of all results", _touch(RESULTS)),
    Change("all results older than their inputs", _touch(RESULTS, time=1_100_000_000)),
    Change("all results of 1990", _touch(RESULTS, time=640_000_000)),
    Change("all results and benchmarks dated tomorrow", _ahead(86_400, RESULTS, "benchmarks/*")),
    Change(
        "the same, and `report.title`",
        _both(
            _ahead(86_400, RESULTS, "benchmarks/*"),
            edit("params.yaml", set_param("report.title", SECTIONS["report.title"])),
        ),
        params="report.title",
    ),
    Change("code and data a minute ahead", _ahead(60, "rtdmd/**/*", "data/**/*")),
    Change("results relinked with `cache.type symlink`", _link_results),
    Change("Snakemake was killed, its stage ended well", _incomplete),
    Change(
        "the same, and `publish.prompt`",
        _both(_incomplete, edit("params.yaml", set_param("publish.prompt", SECTIONS["publish.prompt"]))),
        params="publish.prompt",
    ),
    Change("files of emacs, vim and a desktop in `rtdmd/train`", _editors_files),
    Change("`rm -r results`, `git checkout`, `dvc checkout`", _remove_and_checkout),
    Change("`rm -r .snakemake`", _remove(".snakemake")),
]


def dvc(*arguments: str) -> str:
    """What DVC says in this folder."""
    from dvc.cli import main

    return _said(lambda: main(list(arguments)))


def snakemake(*arguments: str) -> str:
    """What Snakemake says in this folder."""
    from snakemake.cli import main

    return _said(lambda: main(list(arguments)))


def _said(program: Callable[[], Any]) -> str:
    """All that a program writes to its two streams, whose handlers may be older than this call."""
    sys.stdout.flush()
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile("w+") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        try:
            code = program()
        except SystemExit as end:
            code = end.code
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            for stream, own in enumerate(kept, start=1):
                os.dup2(own, stream)
                os.close(own)
        file.seek(0)
        text = file.read()
    assert not code, text
    return text


def dvc_would_run() -> list[str]:
    """Names of the stages, sorted."""
    said = dvc("repro", "--dry", "--force-downstream")
    found = re.findall(r"^(?:Running stage '(\w+)':|Stage '(\w+)' is cached)", said, re.MULTILINE)
    return sorted({run or restored for run, restored in found})


def snakemake_would_run(stages: list[str]) -> list[str]:
    """Names of the rules, sorted; `all` has nothing to run."""
    said = snakemake("--dry-run", "--cores", "1")
    found = sorted(set(re.findall(r"^(\w+) +1$", said, re.MULTILINE)) & set(stages))  # the table of jobs
    assert bool(found) is not ("Nothing to be done" in said), said
    return found


@contextmanager
def undone(root: Path, kept: Path) -> Iterator[None]:
    """Put every file back as it was when the block began, times included."""
    names = (
        *("params.yaml", "dvc.yaml", "dvc.lock", ".dvc/config", "rtdmd", "workflow", "data/prompts", "results"),
        *("benchmarks", ".snakemake"),
    )
    for name in names:
        _copy(root / name, kept / name)
    try:
        yield
    finally:
        for name in names:
            _copy(kept / name, root / name)


def _copy(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)


def parse_once() -> None:
    """DVC parses params.yaml, dvc.yaml and dvc.lock thirty times in a row of the matrix, a tenth of a second each: here
    once for each text."""
    from dvc.utils import strictyaml
    from dvc.utils.serialize import _yaml

    parse = cache(_yaml.parse_yaml)

    def parsed(text: str, path: str, typ: str = "safe") -> Any:
        return deepcopy(parse(text, path, typ))

    _yaml.parse_yaml = strictyaml.parse_yaml = parsed


def keep_plan(stages: list[str]) -> None:
    """A kept plan for the params of this folder: a dry run lists what jobs need, and a real plan takes seconds
    (tests/plan makes those)."""
    need = {"mem_mb": 1000, "runtime": 5, "gpu": 0}
    path = Path(FOLDER) / f"{plan_key(load_params(), Path())}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dict.fromkeys(stages, need))


def rows(root: Path) -> Iterator[dict[str, Any]]:
    """What has to run after each change, by dvc.yaml and by either engine."""
    os.chdir(root)
    pipeline = read_pipeline(Path("."))
    parse_once()
    for change in CHANGES:
        with undone(Path("."), Path(".rtdmd/kept")):
            expected = sorted(change.expected(pipeline))
            change.make(Path("."))
            keep_plan(list(pipeline))
            row = {"change": change.title, "dvc": dvc_would_run(), "snakemake": snakemake_would_run(list(pipeline))}
        yield row | {"expected": expected}


def line(row: dict[str, Any]) -> str:
    """A row in Markdown: the stages, and whether each engine names them."""
    number, cells = len(row["expected"]), []
    stages = {0: "nothing", 7: "all seven"}.get(number, ", ".join(row["expected"]))
    for engine in ("dvc", "snakemake"):
        cells.append("the same" if row[engine] == row["expected"] else ", ".join(row[engine]) or "nothing")
    return f"| {row['change']} | {stages} | {cells[0]} | {cells[1]} |"


def main(root: Path, as_json: bool) -> None:
    """Print the matrix of the checkout at `root`."""
    if not as_json:
        print("| change | has to run | DVC names | Snakemake names |\n|---|---|---|---|")
    for row in rows(root):
        print(json.dumps(row) if as_json else line(row), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--json" in sys.argv)
