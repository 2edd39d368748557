"""Where a result comes from, and whether it could be made again from what is here.

A result of this folder is traced through `dvc.lock`. What came from elsewhere (a published folder, weights on their
own, a repository on the Hub) is traced through the record that it carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rtdmd.common.errors import UserError
from rtdmd.common.escape import printable
from rtdmd.common.files import hash_of, sha256_file, tree_files
from rtdmd.pipeline.lineage import (
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
    stages_of,
)
from rtdmd.pipeline.provenance import package_versions
from rtdmd.publish.records import (
    GATE,
    PROVENANCE,
    RESOLVED,
    UPLOAD,
    Gate,
    Provenance,
    Resolved,
    Upload,
    checked,
    read_record_file,
    record_of_weights,
    steps_of_record,
)

RECORDS = (PROVENANCE, UPLOAD, GATE, RESOLVED)  # none tells of all of them
FOLDER = "the folder itself"
VERSIONS = "package versions"
WIDTH = 50


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

    Inside ``root``: a stage's folder in results/, one of its outputs, or a folder that holds results of several stages:
    all of them. Anywhere: a published folder, a copy of a stage's folder, a copy of an output, or weights with a record
    in their header. UserError for anything else.
    """
    lock = read_lock(root) if (root / "dvc.lock").is_file() else {}
    here = _relative(path, root)
    stages = stages_of(here, lock)
    if stages:
        return _trace_stages(stages, lock, str(path), _unrecorded(path, root, lock))
    if path.is_dir() and (path / PROVENANCE).is_file():
        return _trace_published(path)
    if path.is_dir() and (path / RESOLVED).is_file():
        return _trace_copy(path)
    if path.is_file():
        return _trace_file(path, lock)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder, and no output of dvc.lock; on the Hub it is {path}@main")
    raise UserError(f"{path}: nothing to trace: no output of dvc.lock, and no {PROVENANCE} or {RESOLVED} in it")


def _relative(path: Path, root: Path) -> str:
    """The path as dvc.lock would write it."""
    absolute = path.resolve()
    return absolute.relative_to(root.resolve()).as_posix() if absolute.is_relative_to(root.resolve()) else str(absolute)


def _unrecorded(path: Path, root: Path, lock: Mapping[str, Step]) -> list[str]:
    """A note on the files of a folder of results that no stage of dvc.lock made."""
    made = {output for step in lock.values() for output in step.outputs}
    results = root / "results"
    folder = results if path.resolve() == root.resolve() else path
    place = _relative(folder, root)  # not each file's: DVC may have made links into its cache of them
    files = [f"{place}/{file.relative_to(folder).as_posix()}" for file in tree_files(folder)]
    return _not_looked_at([file for file in files if file not in made], "dvc.lock")


def _not_looked_at(files: Sequence[str], record: str) -> list[str]:
    if not files:
        return []
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    return [f"not in {record}, so not looked at: {files[0]}{more}"]


def _trace_stages(stages: Sequence[str], lock: Mapping[str, Step], title: str, notes: Sequence[str] = ()) -> Traced:
    """The results of stages as dvc.lock records them, with all that is behind any of them."""
    found = {step.name: step for stage in stages for step in behind(stage, lock)}
    steps = list(found.values())
    named = f"stage {stages[0]}" if len(stages) == 1 else f"stages {', '.join(stages)}"
    return Traced(f"{title}: {named} of dvc.lock, lineage {short(lock_hash(steps))}", steps, md5_like_dvc, notes=notes)


def trace_record(
    record: Provenance, title: str, damage: Sequence[Difference] = (), notes: Sequence[str] = ()
) -> Traced:
    """Published weights, through the record that they carry."""
    steps = steps_of_record(record, title)
    text = f"{title}: settings {short(record.settings_sha256 or 'without a hash')}, as its own record tells"
    versions = {name: version for step in steps for name, version in step.versions.items()}
    digest = hash_of(record.settings)
    if record.settings_sha256 not in (None, digest):
        damage = [Difference(FOLDER, "settings_sha256", short(str(record.settings_sha256)), short(digest)), *damage]
    return Traced(text, steps, sha256_here, damage, notes, versions)


def _trace_copy(folder: Path) -> Traced:
    """A copy of a stage's folder, through its settings file: this one stage, its inputs by their hashes."""
    resolved = read_record_file(Resolved, folder / RESOLVED)
    name = resolved.stage
    record = {"inputs": {name: resolved.inputs}, "settings": resolved.params, "versions": {name: resolved.versions}}
    note = f"a copy of results/{name}: its inputs are told by hash, not how they were made"
    return trace_record(checked(Provenance, record, str(folder)), str(folder), notes=[note])


def _trace_file(path: Path, lock: Mapping[str, Step]) -> Traced:
    digest = md5_like_dvc(path)
    same = {out: step.name for step in lock.values() for out, recorded in step.outputs.items() if recorded == digest}
    if same:
        stages = list(dict.fromkeys(same.values()))
        return _trace_stages(stages, lock, f"{path}, the same bytes as {' and '.join(same)}")
    record = record_of_weights(path) if path.suffix == ".safetensors" else None
    if record is None:
        raise UserError(f"{path}: not an output of dvc.lock, and no record in it; trace the folder that it came with")
    return trace_record(checked(Provenance, record, str(path)), str(path))


def _trace_published(folder: Path) -> Traced:
    """A published folder, or one that never was: the files that its record tells of, and those that it does not."""
    record = read_record_file(Provenance, folder / PROVENANCE)
    notes: list[str] = []
    recorded: Mapping[str, str] = {}
    if (folder / GATE).is_file():
        recorded = read_record_file(Gate, folder / GATE).sha256
    if (folder / UPLOAD).is_file():
        upload = read_record_file(Upload, folder / UPLOAD)
        notes += published_from(upload)
        recorded = upload.files or recorded
    if not recorded:
        notes.append(f"no {GATE} or {UPLOAD} that tells its files, so they are not compared")
    here = {name: sha256_file(folder / name) for name in recorded if (folder / name).is_file()}
    files = [file.relative_to(folder).as_posix() for file in tree_files(folder)]
    notes += _not_looked_at([file for file in files if file not in {*recorded, *RECORDS}], "its record")
    return trace_record(record, str(folder), damage(recorded, here), notes)


def published_from(upload: Upload) -> list[str]:
    """What the record of an upload says, in sentences."""
    reasons = [*upload.changed_files, *upload.stale]
    lines = [f"published as {upload.tag} from commit {upload.git_commit or 'unknown'}"]
    return lines + ([f"published with --allow-dirty: {'; '.join(reasons)}"] if reasons else [])


def damage(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[Difference]:
    """Files whose SHA-256 is not the recorded one."""
    return [
        Difference(FOLDER, name, short(digest), short(here.get(name, "missing")))
        for name, digest in sorted(recorded.items())
        if here.get(name) != digest
    ]


def table(traced: Traced, found: Sequence[Difference]) -> str:
    """The text that `rtdmd trace` prints, from the result back to its first causes, with a mark at whatever differs;
    ``found`` is what ``traced.compare`` gave. Names and notes may be anybody's: control characters are printed as
    Python writes them."""
    makers = {path: step.name for step in traced.steps for path in step.outputs}
    others = {one.what: one.here for one in found}

    def here(path: str, digest: str) -> str:
        return others.get(path, short(digest))

    def row(kind: str, what: str, recorded: str, now: str, origin: str = "") -> str:
        mark, differs = ("=", "") if now == recorded else ("≠", f", here {now}")
        return f"  {kind}{mark} {what.ljust(WIDTH)} {recorded}{differs}{origin}"

    def titled(title: str) -> list[str]:
        rows = [row("", one.what, one.recorded, one.here) for one in found if one.stage == title]
        return ["", title, *rows] if rows else []

    lines = [traced.title, *(f"  {note}" for note in traced.notes), *titled(FOLDER)]
    for step in reversed(traced.steps):
        lines += ["", step.name + (f": {step.command}" if step.command else "")]
        code = []  # as recorded, it takes one row together
        for path, digest in step.inputs.items():
            if path.startswith("rtdmd/") and here(path, digest) == short(digest):
                code.append(path.removeprefix("rtdmd/"))
                continue
            origin = f"  from {makers[path]}" if path in makers else ""
            lines.append(row("in   ", path, short(digest), here(path, digest), origin))
        lines += [f"  code = {', '.join(code)}"] if code else []
        changed = [one for one in found if one.stage == step.name and one.what not in {*step.inputs, *step.outputs}]
        lines += [row("set  ", one.what, one.recorded, one.here) for one in changed]
        if step.params and not changed:
            lines.append(f"  set  = {', '.join(step.params)}")
        for path, digest in step.outputs.items():
            lines.append(row("out  ", path, short(digest), here(path, digest)))
    return "\n".join(map(printable, [*lines, *titled(VERSIONS)]))
