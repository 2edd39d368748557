"""Where a result comes from, and whether it could be made again from what is here.

A result of this folder is traced through `dvc.lock`. What came from elsewhere (a published folder, weights on their
own, a repository on the Hub) is traced through the record that it carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, sha256_file
from rtdmd.pipeline.provenance import package_versions
from rtdmd.publish.lineage import (
    Difference,
    Hasher,
    Step,
    behind,
    differences,
    lock_hash,
    md5_like_dvc,
    read_lock,
    sha256_here,
    short,
    stage_of,
)
from rtdmd.publish.lineage_record import record_of_weights, steps_of_record

PROVENANCE, PUBLISHED_FROM, RESOLVED, GATE = "provenance.json", "upload.json", "resolved.json", "gate.json"
FOLDER, VERSIONS = "the folder itself", "package versions"


@dataclass(frozen=True)
class Traced:
    """A result, its lineage (causes first), and what is wrong with the result itself, before any comparison."""

    title: str
    steps: Sequence[Step]
    hasher: Hasher
    damage: Sequence[Difference] = ()
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def compare(self, root: Path) -> list[Difference]:
        """Every difference to ``root``: damage first, then causes before effects, package versions last."""
        here = package_versions()
        versions = [
            Difference(VERSIONS, name, was, here.get(name, "not installed"))
            for name, was in self.versions.items()
            if here.get(name) != was
        ]
        return [*self.damage, *differences(root, self.steps, self.hasher), *versions]


def trace_path(path: Path, root: Path = Path(".")) -> Traced:
    """The lineage of a folder or file.

    Inside ``root``: a stage's folder in results/ or one of its outputs. Anywhere: a published folder, a copy of a
    stage's folder, a copy of an output, or weights with a record in their header. UserError for anything else.
    """
    lock = read_lock(root) if (root / "dvc.lock").is_file() else {}
    stage = stage_of(_relative(path, root), lock)
    if stage is not None:
        return trace_stage(stage, lock, str(path))
    if path.is_dir() and (path / PROVENANCE).is_file():
        return trace_record(read_json(path / PROVENANCE), str(path), _damage(path), _published_from(path))
    if path.is_dir() and (path / RESOLVED).is_file():
        return trace_resolved(read_json(path / RESOLVED), str(path))
    if path.is_file():
        return _trace_file(path, lock)
    raise UserError(f"{path}: nothing to trace: no output of dvc.lock, and no {PROVENANCE} or {RESOLVED} in it")


def _relative(path: Path, root: Path) -> str:
    """The path as dvc.lock would write it."""
    absolute = path.resolve()
    return absolute.relative_to(root.resolve()).as_posix() if absolute.is_relative_to(root.resolve()) else str(absolute)


def trace_stage(stage: str, lock: Mapping[str, Step], title: str) -> Traced:
    """A stage's results as dvc.lock records them."""
    steps = behind(stage, lock)
    return Traced(f"{title}: stage {stage} of dvc.lock, lineage {short(lock_hash(steps))}", steps, md5_like_dvc)


def trace_record(record: Any, title: str, damage: Sequence[Difference] = (), notes: Sequence[str] = ()) -> Traced:
    """Published weights, through the record that they carry."""
    steps = steps_of_record(record, title)
    text = f"{title}: settings {short(record.get('settings_sha256', 'without a hash'))}, as its own record tells"
    versions = {name: version for step in steps for name, version in step.versions.items()}
    return Traced(text, steps, sha256_here, damage, notes, versions)


def trace_resolved(resolved: Mapping[str, Any], title: str) -> Traced:
    """A copy of a stage's folder, through its settings file: this one stage, its inputs by their hashes."""
    name = resolved.get("stage", "?")
    record = {
        "inputs": {name: resolved.get("inputs")},
        "settings": resolved.get("params"),
        "versions": {name: resolved.get("versions", {})},
    }
    return trace_record(
        record, title, notes=[f"a copy of results/{name}: its inputs are told by hash, not how they were made"]
    )


def _trace_file(path: Path, lock: Mapping[str, Step]) -> Traced:
    digest = md5_like_dvc(path)
    for step in lock.values():
        for output, recorded in step.outputs.items():
            if recorded == digest:
                return trace_stage(step.name, lock, f"{path}, the same bytes as {output}")
    record = record_of_weights(path) if path.suffix == ".safetensors" else None
    if record is None:
        raise UserError(f"{path}: not an output of dvc.lock, and no record in it; trace the folder that it came with")
    return trace_record(record, str(path))


def _published_from(folder: Path) -> list[str]:
    if not (folder / PUBLISHED_FROM).is_file():
        return []
    return published_from(read_json(folder / PUBLISHED_FROM))


def published_from(upload: Mapping[str, Any]) -> list[str]:
    """What the record of an upload says, in sentences."""
    reasons = [*upload.get("changed_files", []), *upload.get("stale", [])]
    lines = [f"published as {upload.get('tag')} from commit {upload.get('git_commit') or 'unknown'}"]
    return lines + ([f"published with --allow-dirty: {'; '.join(reasons)}"] if reasons else [])


def _damage(folder: Path) -> list[Difference]:
    """Files of a published folder that are not what was uploaded or, in a folder that never was, passed the gate."""
    files = [folder / PUBLISHED_FROM, folder / GATE]
    records = [read_json(path) for path in files if path.is_file()]
    recorded: dict[str, str] = next((record.get("files") or record.get("sha256", {}) for record in records), {})
    return damage(recorded, {name: sha256_file(folder / name) for name in recorded if (folder / name).is_file()})


def damage(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[Difference]:
    """Files whose SHA-256 is not the recorded one."""
    return [
        Difference(FOLDER, name, short(digest), short(here.get(name, "missing")))
        for name, digest in sorted(recorded.items())
        if here.get(name) != digest
    ]
