"""Training state that survives a kill: safetensors and JSON in a run folder, complete or not there at all.

A checkpoint is a folder ``step-00000123`` written under a temporary name, flushed, given a manifest and renamed;
LATEST, which is for people, is rewritten last. The manifest holds every file's hash, the step and the name of the run
folder, and manifest.sha256 holds its own hash, so that every bit of a checkpoint is checked and none is taken from
another run. Reading takes the newest folder that is whole and says which it skips. There is no generator state: every
draw is keyed by (seed, step, sample), so the step counter is the whole position of data, noise and schedule.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtdmd.common.errors import NonFiniteError
from rtdmd.common.files import fsync_path, load_tensors, remove, save_tensors, sha256_file, write_atomic, write_json

KEEP = 2  # checkpoints kept unless told otherwise: the latest, and one to fall back on
JOURNAL = "journal.jsonl"
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"  # as `sha256sum` writes it, and checks it with -c
_NAME = re.compile(r"step-(\d{8,})")


@dataclass
class Snapshot:
    """One checkpoint: the next step, named tensor groups, and the journal so far."""

    step: int
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    journal: str = ""


def save(folder: Path, snapshot: Snapshot, keep: int = KEEP) -> None:
    """Write a checkpoint under ``folder`` and drop all but the last ``keep`` that are whole, and the damaged ones.

    Raises NonFiniteError, before anything is written, where a tensor has a value that is not finite.
    """
    require_finite_groups(snapshot.tensors)
    final = folder / f"step-{snapshot.step:08d}"
    partial = folder / f".{final.name}.partial"
    remove(partial)
    partial.mkdir(parents=True)
    for name, tensors in snapshot.tensors.items():
        save_tensors(tensors, partial / f"{name}.safetensors")
    write_atomic(partial / JOURNAL, snapshot.journal)
    files = sorted(path.name for path in partial.iterdir())
    hashes = {name: sha256_file(partial / name) for name in files}
    write_json(partial / MANIFEST, {"run": _run_name(folder), "step": snapshot.step, "files": hashes})
    write_atomic(partial / SEAL, _seal(partial))
    fsync_path(partial)
    remove(final)  # a damaged one: reading went back behind it
    partial.replace(final)
    fsync_path(folder)
    write_atomic(folder / "LATEST", final.name + "\n")
    _retain(folder, final, keep)


def require_finite_groups(groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """NonFiniteError naming group and tensor unless all values are finite: neither moments nor averages show in a
    loss."""
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            odd = int((~torch.isfinite(tensor)).sum())
            if odd:
                raise NonFiniteError(f"{group}: {name} has {odd} non-finite values of {tensor.numel()}")


def _retain(folder: Path, newest: Path, keep: int) -> None:
    """Drop what is behind the last ``keep`` whole checkpoints of this run, and the damaged ones: a damaged one takes no
    place. A whole one of another run was put there by somebody, and stays."""
    kept = 0
    for path in _newest_first(folder):
        damage = None if path == newest else _damage(path)
        if damage is not None:
            print(f"{path}: removed, {damage}", file=sys.stderr)
            remove(path)
        elif path == newest or _foreign(path) is None:
            kept += 1
            if kept > keep:
                remove(path)


def remove_partial(folder: Path) -> None:
    """Drop the temporary files and folders of a killed process; nobody else may be at work in ``folder``."""
    for stale in folder.glob(".*"):
        remove(stale)


def load(folder: Path, quiet: bool = False) -> Snapshot | None:
    """The newest whole checkpoint of this run, or None. Each newer one is skipped with a line on standard error, unless
    ``quiet``."""
    for path in _newest_first(folder):
        fault = _damage(path) or _foreign(path)
        if fault is None:
            manifest = _manifest(path)
            groups = [name for name in manifest["files"] if name.endswith(".safetensors")]
            tensors = {Path(name).stem: load_tensors(path / name)[0] for name in groups}
            return Snapshot(manifest["step"], tensors, (path / JOURNAL).read_text(encoding="utf-8"))
        if not quiet:
            print(f"{path}: skipped, {fault}", file=sys.stderr)
    return None


def _newest_first(folder: Path) -> Iterator[Path]:
    """Everything that has a checkpoint's name, by step."""
    found = {path: match for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))}
    yield from sorted(found, key=lambda path: int(found[path][1]), reverse=True)


def _run_name(folder: Path) -> str:
    """The run folder's name, which is the hash of its parameters, inputs and code."""
    return folder.resolve().name


def _seal(path: Path) -> str:
    return f"{sha256_file(path / MANIFEST)}  {MANIFEST}\n"


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose seal holds."""
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def _damage(path: Path) -> str | None:
    """What is damaged in a checkpoint, or None. The manifest is parsed only after its hash is found right."""
    try:
        if not (path / MANIFEST).is_file() or not (path / SEAL).is_file():
            return f"{MANIFEST} or {SEAL} is missing"
        if (path / SEAL).read_bytes() != _seal(path).encode():
            return f"{MANIFEST} is not the one that was written ({SEAL} has another hash)"
        for name, digest in _manifest(path)["files"].items():
            if not (path / name).is_file() or sha256_file(path / name) != digest:
                return f"{name} is missing or damaged"
    except OSError as error:
        return f"it cannot be read ({error})"
    return None


def _foreign(path: Path) -> str | None:
    """Why a checkpoint without damage is not one of this run at this step, or None."""
    manifest = _manifest(path)
    if manifest["run"] != _run_name(path.parent):
        return f"it belongs to another run, {manifest['run']}"
    if f"step-{manifest['step']:08d}" != path.name:
        return f"it was written as step-{manifest['step']:08d}"
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's moments and counters as tensors named ``<parameter index>.<moment>``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{key}": torch.as_tensor(value) for i, entry in state.items() for key, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` took; the parameter groups are the caller's."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def indexed(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """A list of tensors as a named group."""
    return {f"{i:05d}": tensor.detach().cpu() for i, tensor in enumerate(tensors)}


@torch.no_grad()
def copy_indexed(targets: Sequence[Tensor | nn.Parameter], group: Mapping[str, Tensor]) -> None:
    """Copy a named group back into a list of tensors of the same shapes."""
    for i, target in enumerate(targets):
        target.copy_(group[f"{i:05d}"])
