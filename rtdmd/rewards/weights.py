"""Published weights: fetched at a pinned commit, read without running anything, and loaded to the last key."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rtdmd.common.errors import UserError
from rtdmd.common.files import check_archive, load_tensors, sha256_file
from rtdmd.common.model_files import bring_back, tensor_headers
from rtdmd.common.parsing import first_line
from rtdmd.common.pretrained import FOREIGN, few, pretrained_exactly
from rtdmd.common.torch_setup import quiet_loading
from rtdmd.rewards.hub import fetch_scorer

if TYPE_CHECKING:
    from rtdmd.rewards.registration import RewardParams

__all__ = [
    "assemble",
    "checked_keys",
    "file_hashes",
    "file_in",
    "load_exactly",
    "on_this_machine",
    "pretrained_exactly",
    "read_weights",
]


def on_this_machine(params: RewardParams, root: Path) -> RewardParams:
    """The same entry with a folder in each of its sources: relative ones from ``root``, Hub ids downloaded.

    Raises UserError that says what to do: a gated or unknown repository, no such commit, no connection.
    """
    found = {}
    for key in params.sources:
        value = getattr(params, key)
        if value is not None:
            found[key] = str(fetch_scorer(params, key) if params.is_hub_id(key) else root / value)
    return params.model_copy(update=found)


def file_in(folder: Path, key: str, *names: str) -> Path:
    """The first of ``names`` (globs allowed, one match each) that ``folder`` has; UserError that lists them.

    key: how the message names the setting, for example ``rewards: hpsv2: model``.
    """
    for name in names:
        found = sorted(folder.glob(name))
        if len(found) > 1:
            raise UserError(f"{key}: {folder} has {len(found)} files {name}, which of them is meant? Keep one")
        if found:
            return found[0]
    raise UserError(f"{key}: {folder} has no {' or '.join(names)}")


def read_weights(path: Path, key: str = "") -> dict[str, Tensor]:
    """Tensors by name of a .safetensors, .pt, .pth or .bin file, on the CPU; the latter by ``weights_only`` alone.

    A checkpoint that wraps them (``{"state_dict": ...}`` or ``{"model": ...}``) is unwrapped. UserError (with ``key``
    in front) where the file is damaged, holds more than tensors or none.
    """
    prefix = f"{key}: " if key else ""
    if path.suffix == ".safetensors":
        tensor_headers(path, key or "weights")  # says what brings a damaged one back
        return load_tensors(path)[0]
    try:
        if zipfile.is_zipfile(path):  # older files of torch.save are none, and have no checksums
            check_archive(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UserError as error:
        raise UserError(f"{prefix}{error}; {bring_back(path)}") from error
    except pickle.UnpicklingError as error:  # torch's own advice, to read it without the guard, runs what is in it
        raise UserError(
            f"{prefix}{path} cannot be read as plain tensors: it is damaged, or holds objects that would run code, and"
            f" these are never loaded; {bring_back(path)}"
        ) from error
    except FOREIGN as error:
        why = first_line(error)
        raise UserError(f"{prefix}{path} cannot be read as plain tensors ({why}); {bring_back(path)}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"{prefix}{path} does not hold named tensors, so it is not a weights file")
    return dict(found)


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], key: str, ignored: Iterable[str] = ()) -> None:
    """Copy every tensor into ``module``: UserError that names missing, unexpected and wrongly shaped keys.

    ignored: keys of the file that say nothing (position counters of old layouts, say), left out if they are there.
    Buffers that the module does not save are not asked for.
    """
    module.load_state_dict(checked_keys(module, tensors, key, ignored))


def assemble(kind: Any, config: Any, tensors: Mapping[str, Tensor], key: str, ignored: Iterable[str] = ()) -> Any:
    """A transformers model of class ``kind`` in float32, evaluation mode and frozen, with exactly these tensors.

    Unlike `from_pretrained` alone, which only warns, a missing or unexpected key is an error; see `load_exactly`.
    """
    with torch.device("meta"):
        empty = kind(config)
    given = {name: value.float() for name, value in checked_keys(empty, tensors, key, ignored).items()}
    with quiet_loading():
        model = kind.from_pretrained(None, config=config, state_dict=given, dtype=torch.float32)
    return model.requires_grad_(False).eval()


def checked_keys(
    module: nn.Module, tensors: Mapping[str, Tensor], key: str, ignored: Iterable[str] = ()
) -> dict[str, Tensor]:
    """The tensors that are not ``ignored``, once their names and shapes are exactly the module's; else UserError."""
    given = {name: value for name, value in tensors.items() if name not in set(ignored)}
    wanted = module.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(n for n in wanted.keys() & given.keys() if wanted[n].shape != given[n].shape),
    }
    found = [f"{what}: {few(names)}" for what, names in problems.items() if names]
    if found:
        raise UserError(f"{key}: the weights are not this model's; {'; '.join(found)}")
    return given


def file_hashes(*paths: Path) -> dict[str, str]:
    """sha256 by file name, for `Reward.identity`."""
    return {path.name: sha256_file(path) for path in sorted(paths)}
