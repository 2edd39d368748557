"""`dvc.yaml` as a stage sees it: the one place where command, dependencies, params and outputs are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.common.parsing import first_line, read_text
from rtdmd.common.yaml_text import parse_yaml, parse_yaml_11

PROMPT_FILES = "data/prompts"  # the files in it are the user's


@dataclass(frozen=True)
class StageEntry:
    """One stage of `dvc.yaml`; paths are relative to the repository's root, with forward slashes."""

    name: str
    deps: tuple[str, ...]
    params: tuple[str, ...]  # dotted keys of params.yaml
    outs: tuple[str, ...]  # outs, metrics and plots
    command: str = ""
    description: str = ""


def read_pipeline(root: Path, alike: bool = True) -> dict[str, StageEntry]:
    """All stages of `root/dvc.yaml`. UserError where it cannot be read or (``alike``) where DVC reads another value."""
    path = root / "dvc.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such file; run this command in the repository's root folder")
    back = "`git checkout dvc.yaml` brings the committed one back"
    tree = (parse_yaml if alike else parse_yaml_11)(read_text(path, back), str(path), back)
    try:
        return {name: _entry(name, value) for name, value in tree["stages"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: the stages cannot be read ({first_line(error)}); {back}") from error


def _entry(name: str, value: dict[str, Any]) -> StageEntry:
    outs = [path for kind in ("outs", "metrics", "plots") for path in _paths(value.get(kind, []))]
    return StageEntry(
        name,
        deps=_paths(value.get("deps", [])),
        params=tuple(value.get("params", [])),
        outs=tuple(outs),
        command=value.get("cmd", ""),
        description=value.get("desc", ""),
    )


def _paths(items: list[str | dict[str, Any]]) -> tuple[str, ...]:
    """DVC writes an item as a path, or as {path: options}."""
    return tuple(item if isinstance(item, str) else next(iter(item)) for item in items)


def missing_file(path: str, pipeline: dict[str, StageEntry]) -> str:
    """One line about a dependency that is not there: which command makes it, or brings it back."""
    makers = [stage.name for stage in pipeline.values() if path in stage.outs]
    if makers:
        return f"{path}: no such file; `snakemake {makers[0]}` makes it"
    if path != PROMPT_FILES and covers(PROMPT_FILES, path):
        then = "put it there, or name another in prepare_prompts of params.yaml (docs/configuration.md says how)"
        return f"{path}: no such file; {then}"
    return f"{path}: no such file; it belongs to the repository: `git checkout {path}`"


def refuse_missing(root: Path, paths: Iterable[str], pipeline: dict[str, StageEntry]) -> None:
    """UserError where a dependency is not there, or has a link to a folder in it: neither engine looks into that."""
    for path in paths:
        if not (root / path).exists():
            raise UserError(missing_file(path, pipeline))
        for inner in sorted((root / path).rglob("*")):
            if inner.is_symlink() and inner.is_dir():
                raise UserError(
                    f"{inner} is a link to a folder, and neither engine would see a change in it; link each of its"
                    " files, or move the folder here"
                )


def covers(declared: str, path: str) -> bool:
    """True when `path` is `declared` or lies inside it (a path that goes up with `..` lies nowhere)."""
    return ".." not in PurePosixPath(path).parts and PurePosixPath(path).is_relative_to(declared)


def params_values(tree: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The values of dotted keys in nested dictionaries; UserError when dvc.yaml names one that does not exist."""
    values = {}
    for key in keys:
        value: Any = tree
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                raise UserError(f"dvc.yaml: params: {key} is not a key of params.yaml")
            value = value[part]
        values[key] = value
    return values
