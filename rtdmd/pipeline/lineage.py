"""The lineage of a result: the stages behind it, each with its command, inputs, settings and outputs.

It is told by `dvc.lock` (MD5, for the results of this folder), or by the record that travels with published weights
(SHA-256, see publish/records.py). Either is a list of steps, causes first, and either can be compared with the files
and parameters that are here: `differences` goes from the first cause on, so that the first thing it names is why all
that follows differs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.common.escape import printable
from rtdmd.common.files import hash_of, md5_file, sha256_tree, tree_files
from rtdmd.common.parsing import read_text
from rtdmd.config.load import COMPLETE, read_sections
from rtdmd.pipeline.dvc_repo import LOCK, read_record
from rtdmd.pipeline.dvc_yaml import read_pipeline
from rtdmd.pipeline.model_inputs import folders_here

Hasher = Callable[[Path], str]
_NOTHING = "nothing"
_PINNED = re.compile(r"[^@]+@[0-9a-f]{40}")


@dataclass(frozen=True)
class Step:
    """One stage as it was run. Paths are relative to the repository's root, with forward slashes."""

    name: str
    inputs: dict[str, str]  # path -> hash
    outputs: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)  # dotted key of params.yaml -> value
    command: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """Something that is not here as it was recorded."""

    stage: str
    what: str  # a path, a parameter, a package
    recorded: str
    here: str

    def __str__(self) -> str:
        return printable(f"{self.stage}: {self.what}: {self.recorded} recorded, {self.here} here")


def read_lock(root: Path) -> dict[str, Step]:
    """Every stage of `root/dvc.lock`, by name. UserError when it is missing or cannot be read."""
    if not (root / LOCK).is_file():
        raise UserError(
            f"{root / LOCK}: no such file; `snakemake --cores all` or `dvc repro` runs the stages and writes it"
        )
    return {name: _step(name, entry) for name, entry in read_record(root).items()}


def _step(name: str, entry: Mapping[str, Any]) -> Step:
    inputs = {item["path"]: item["md5"] for item in entry.get("deps", [])}
    outputs = {item["path"]: item["md5"] for item in entry.get("outs", [])}
    params = entry.get("params", {}).get("params.yaml", {})
    command = entry["cmd"]
    shown = command if isinstance(command, str) else " && ".join(command)
    return Step(name, inputs, outputs, params, shown)


def behind(name: str, steps: Mapping[str, Step]) -> list[Step]:
    """The step ``name`` and all that it needs, causes first; the order depends on nothing but names."""
    if name not in steps:
        raise UserError(f"dvc.lock: no stage {name!r}; `snakemake {name}` runs it")
    makers = {path: step.name for step in steps.values() for path in step.outputs}
    found: dict[str, Step] = {}

    def visit(step: Step) -> None:
        for maker in sorted({makers[path] for path in step.inputs if path in makers}):
            if maker not in found:
                visit(steps[maker])
        found[step.name] = step

    visit(steps[name])
    return list(found.values())


def lock_hash(steps: Sequence[Step]) -> str:
    """SHA-256 of what dvc.lock says of these stages. Their order in the file (it varies after parallel runs) and all
    other stages do not count."""
    return hash_of(lock_tree(steps))


def lock_tree(steps: Sequence[Step]) -> dict[str, Any]:
    """What dvc.lock says of these stages, for JSON."""
    return {
        step.name: {"cmd": step.command, "deps": step.inputs, "params": step.params, "outs": step.outputs}
        for step in steps
    }


def md5_like_dvc(path: Path) -> str:
    """The hash that DVC gives a file or folder: a folder's is that of its list of files, and ends in ".dir"."""
    if path.is_file():
        return md5_file(path)
    files = {file.relative_to(path).as_posix(): file for file in tree_files(path)}
    entries = [{"md5": md5_file(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def differences(root: Path, steps: Sequence[Step], hasher: Hasher = md5_like_dvc) -> Iterator[Difference]:
    """What is here in ``root`` and not as the steps say, causes first: command, parameters, inputs, outputs.

    Each file is hashed and named once, where it first differs. For steps of dvc.lock this finds what `dvc status`
    finds.
    """
    params_file = root / "params.yaml"
    here = flat(read_sections(read_text(params_file, COMPLETE), str(params_file)) if params_file.is_file() else {})
    hashes = folders_here(root) if hasher is sha256_here else {}
    named: set[str] = set()
    for step in steps:
        yield from _of_declaration(root, step)
        yield from _of_params(step, here)
        for path, digest in [*step.inputs.items(), *step.outputs.items()]:
            if _PINNED.fullmatch(path):  # a model of the Hub, which the settings name with its commit
                continue
            if path not in hashes:
                hashes[path] = _hash(path, root, hasher)
            if hashes[path] != digest and path not in named:
                named.add(path)
                yield Difference(step.name, path, short(digest), short(hashes[path]))


def _of_declaration(root: Path, step: Step) -> Iterator[Difference]:
    """Where dvc.yaml says something else than was run (a record from elsewhere has no command: nothing to compare)."""
    if step.command is None:
        return
    pipeline = read_pipeline(root)
    if step.name not in pipeline:
        yield Difference(step.name, "dvc.yaml", f"`{step.command}`", "no such stage")
        return
    entry = pipeline[step.name]
    if entry.command != step.command:
        yield Difference(step.name, "command", f"`{step.command}`", f"`{entry.command}`")
    kinds = (
        ("input", step.inputs, entry.deps),
        ("params", step.params, entry.params),
        ("output", step.outputs, entry.outs),
    )
    for kind, recorded, here in kinds:
        yield from (
            Difference(step.name, f"{kind} {name}", "nothing", "declared") for name in here if name not in recorded
        )
        yield from (
            Difference(step.name, f"{kind} {name}", "declared", "nothing") for name in recorded if name not in here
        )


def _of_params(step: Step, here: Mapping[str, Any]) -> Iterator[Difference]:
    recorded = flat(step.params)
    new = [key for key in here if key not in recorded and any(_inside(key, section) for section in step.params)]
    for key in [*recorded, *new]:
        was = recorded.get(key, _NOTHING)
        now = here.get(key, _NOTHING)
        if was != now:
            yield Difference(step.name, f"params.yaml {key}", _shown(was), _shown(now))


def _inside(key: str, section: str) -> bool:
    return key == section or key.startswith((f"{section}.", f"{section}["))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys (``train.rewards[0].name``) and plain values. A number is a number however YAML wrote it (``1e-05``
    is text to YAML 1.1); within a list's sections null is the same as nothing."""
    if isinstance(tree, Mapping):
        pairs = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in tree.items()]
        return {name: inner for key, value in pairs for name, inner in flat(value, key).items()}
    if isinstance(tree, list | tuple) and any(isinstance(item, Mapping) for item in tree):
        found: dict[str, Any] = {}
        for i, item in enumerate(tree):
            if isinstance(item, Mapping):
                item = {key: value for key, value in item.items() if value is not None}
            found |= flat(item, f"{prefix}[{i}]")
        return found
    return {prefix: _plain(tree)}


def _plain(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _hash(path: str, root: Path, hasher: Hasher) -> str:
    """The hash of what is here; nothing outside of ``root`` is read, whatever a record says."""
    if path.startswith("/") and PurePosixPath(path).is_relative_to(root.resolve()):
        path = PurePosixPath(path).relative_to(root.resolve()).as_posix()
    if not inside(path):
        return "outside of this folder, not looked at"
    return hasher(root / path) if (root / path).exists() else "missing"


def inside(path: str) -> bool:
    """True for a relative path that stays inside its folder, written in the one usual way."""
    parts = PurePosixPath(path).parts
    plain = path.isprintable() and "\\" not in path and PurePosixPath(*parts).as_posix() == path
    short = all(len(part.encode()) <= 255 for part in parts) and len(path) <= 1000
    return plain and short and bool(parts) and not path.startswith("/") and ".." not in parts


def sha256_here(path: Path) -> str:
    """The hash that the stages give their inputs."""
    return sha256_tree(path)


def short(digest: str) -> str:
    """A hash to read: its first 12 digits."""
    return digest[:12] if re.fullmatch(r"[0-9a-f]{32,}(\.dir)?", digest) else digest


def stages_of(path: str, steps: Mapping[str, Step]) -> list[str]:
    """The stages that make ``path`` or, for a folder, files in it."""
    return [
        step.name
        for step in steps.values()
        if any(out == path or PurePosixPath(out).is_relative_to(path) for out in step.outputs)
    ]
