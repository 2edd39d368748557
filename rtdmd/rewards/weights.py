"""Published weights: fetched at a pinned commit, read without running anything, and loaded to the last key."""

from __future__ import annotations

import logging
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from rtdmd.common.errors import UserError
from rtdmd.common.files import check_archive, load_tensors, sha256_file
from rtdmd.common.hub import fetching
from rtdmd.common.torch_setup import quiet_loading

if TYPE_CHECKING:
    from rtdmd.rewards.registration import RewardParams


def on_this_machine(params: RewardParams, root: Path) -> RewardParams:
    """The same entry with a folder in each of its sources: relative ones from ``root``, Hub ids downloaded.

    Raises UserError that says what to do: a gated or unknown repository, no such commit, no connection.
    """
    found = {}
    for key in params.sources:
        value = getattr(params, key)
        if value is not None:
            found[key] = str(_download(params, key) if params.is_hub_id(key) else root / value)
    return params.model_copy(update=found)


def _download(params: RewardParams, key: str) -> Path:
    from huggingface_hub import snapshot_download

    source, entry = params.sources[key], f"rewards: {params.name}"
    repository, revision = getattr(params, key), getattr(params, source.pin)
    with fetching(f"{entry}: {key}", f"{entry}: {source.pin}", repository, revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(source.files)))


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
    try:
        if path.suffix == ".safetensors":
            return load_tensors(path)[0]
        if zipfile.is_zipfile(path):  # older files of torch.save are none, and have no checksums
            check_archive(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{prefix}{path} cannot be read as plain tensors ({str(error).splitlines()[0]})") from error
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


def pretrained_exactly(
    kind: Any,
    folder: Path,
    key: str,
    dtype: torch.dtype | str,
    absent: tuple[str, ...] = (),
    ignored: tuple[str, ...] = (),
) -> Any:
    """The folder's transformers model of class ``kind`` from its safetensors, in evaluation mode and frozen.

    dtype "auto" is the folder's own. absent, ignored: endings of names that may be missing from the files, and that
    they may have beside the model's. UserError where any other key is missing or left over, or a file is damaged.
    """
    try:
        with quiet_loading(), _no_key_table():
            model, info = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
            )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{key}: the weights in {folder} cannot be loaded ({str(error).splitlines()[0]})") from error
    missing = sorted(name for name in info["missing_keys"] if not name.endswith(absent))
    unexpected = sorted(name for name in info["unexpected_keys"] if not name.endswith(ignored))
    if missing or unexpected:
        raise UserError(
            f"{key}: the weights in {folder} are not this model's; missing {missing}, left over {unexpected}"
        )
    return model.requires_grad_(False).eval()


@contextmanager
def _no_key_table() -> Iterator[None]:
    """Keep transformers' table of missing and unexpected keys off the terminal: both are looked at here."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


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
    found = [f"{what}: {_few(names)}" for what, names in problems.items() if names]
    if found:
        raise UserError(f"{key}: the weights are not this model's; {'; '.join(found)}")
    return given


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def file_hashes(*paths: Path) -> dict[str, str]:
    """sha256 by file name, for `Reward.identity`."""
    return {path.name: sha256_file(path) for path in sorted(paths)}
