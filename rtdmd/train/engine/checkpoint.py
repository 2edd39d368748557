"""Training state that survives a kill: safetensors and JSON in a run folder, complete or not there at all.

A checkpoint is a folder ``step-00000123`` written under a temporary name, flushed, given a hash manifest and renamed;
LATEST, which is for people, is rewritten last. Reading takes the newest folder whose manifest holds and says which it
skips. There is no generator state: every draw is keyed by (seed, step, sample), so the step counter is the whole
position of data, noise and schedule.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtdmd.common.files import fsync_path, load_tensors, read_json, save_tensors, sha256_file, write_atomic, write_json

KEEP = 2  # checkpoints kept unless told otherwise: the latest, and one to fall back on
JOURNAL = "journal.jsonl"


@dataclass
class Snapshot:
    """One checkpoint: the next step, named tensor groups, and the journal so far."""

    step: int
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    journal: str = ""


def save(folder: Path, snapshot: Snapshot, keep: int = KEEP) -> None:
    """Write a checkpoint under ``folder`` and drop all but the last ``keep``."""
    final = folder / f"step-{snapshot.step:08d}"
    partial = folder / f".{final.name}.partial"
    for stale in (partial, final):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, tensors in snapshot.tensors.items():
        save_tensors(tensors, partial / f"{name}.safetensors")
    write_atomic(partial / JOURNAL, snapshot.journal)
    files = sorted(path.name for path in partial.iterdir())
    manifest = {"step": snapshot.step, "files": {name: sha256_file(partial / name) for name in files}}
    write_json(partial / "manifest.json", manifest)
    fsync_path(partial)
    partial.replace(final)
    fsync_path(folder)
    write_atomic(folder / "LATEST", final.name + "\n")
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def sweep(folder: Path) -> None:
    """Drop the temporary files and folders of a killed process; nobody else may be at work in ``folder``."""
    for stale in folder.glob(".*"):
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink()


def load(folder: Path) -> Snapshot | None:
    """The newest complete checkpoint, or None. An incomplete one is skipped with a line on standard error."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        fault = _fault(path)
        if fault is None:
            manifest = read_json(path / "manifest.json")
            tensors = {file.stem: load_tensors(file)[0] for file in sorted(path.glob("*.safetensors"))}
            return Snapshot(manifest["step"], tensors, (path / JOURNAL).read_text(encoding="utf-8"))
        print(f"{path}: skipped, {fault}", file=sys.stderr)
    return None


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None."""
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        return f"its manifest cannot be read ({error})"
    for name, digest in manifest["files"].items():
        if not (path / name).is_file() or sha256_file(path / name) != digest:
            return f"{name} is missing or damaged"
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
