"""Published weights: fetched at a pinned commit, read without running anything, and loaded to the last key."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rtdmd.common.digests import cached_digest
from rtdmd.common.errors import UserError
from rtdmd.common.files import check_archive, load_tensors
from rtdmd.common.hub import etag
from rtdmd.common.model_files import absent, bring_back, plain_texts, tensor_headers
from rtdmd.common.parsing import first_line
from rtdmd.common.pretrained import FOREIGN, problems_of
from rtdmd.common.torch_setup import quiet_loading
from rtdmd.rewards.hub import TRANSFORMERS_FILES, fetch_scorer, model_weights, scorer_files

if TYPE_CHECKING:
    from rtdmd.rewards.registration import RewardParams

NUMBERS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHA256 = re.compile("[0-9a-f]{64}")


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


@contextmanager
def made_from(path: Path, key: str, what: str) -> Iterator[None]:
    """Around what a library makes of a foreign file: whatever it does not understand is a UserError that names the
    setting ``key``, the file and what brings it back."""
    try:
        yield
    except FOREIGN as error:
        raise UserError(f"{key}: {path} makes no {what} ({first_line(error)}); {bring_back(path)}") from error


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
    raise UserError(f"{key}: {folder} has no {' or '.join(names)}; {absent(folder)}")


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
        raise UserError(f"{prefix}{path} does not hold named tensors, so it is not a weights file; {bring_back(path)}")
    return dict(found)


def read_model(folder: Path, key: str) -> dict[str, Tensor]:
    """Tensors by name of a transformers model's folder: of its one file, or of the shards that its index names.
    UserError as in `read_weights`, and where there are none."""
    names = model_weights(folder, key)
    return {name: tensor for file in names for name, tensor in read_weights(folder / file, key).items()}


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], key: str, ignored: Iterable[str] = ()) -> None:
    """Copy every tensor into ``module``: UserError that names missing, unexpected and wrongly shaped keys.

    ignored: keys of the file that say nothing (position counters of old layouts, say), left out if they are there.
    Buffers that the module does not save are not asked for.
    """
    module.load_state_dict(checked_keys(module, tensors, key, ignored))


def renamed(tensors: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Tensors under a module's names, by the first rule (pattern of a name's beginning, replacement) that knows the
    published name; what none knows keeps its name, so that loading reports it."""
    found = {}
    for name, tensor in tensors.items():
        changed = (re.subn(f"^{pattern}", replacement, name) for pattern, replacement in rules)
        found[next((new for new, count in changed if count), name)] = tensor
    return found


def linear_layers(sizes: Mapping[int, tuple[int, int]]) -> nn.Sequential:
    """Linear layers of (inputs, outputs) at their places in a published head; between them lies nothing, since a
    dropout does nothing when scoring."""
    layers: list[nn.Module] = [nn.Identity() for _ in range(max(sizes) + 1)]
    for place, (inputs, outputs) in sizes.items():
        layers[place] = nn.Linear(inputs, outputs)
    return nn.Sequential(*layers)


def linear_sizes(tensors: Mapping[str, Tensor], head: str) -> dict[int, tuple[int, int]]:
    """Place -> (inputs, outputs) of a published head's linear layers, by their weights ``<head>.<place>.weight``."""
    pattern = re.compile(rf"{re.escape(head)}\.(\d+)\.weight")
    found = {int(match[1]): tensors[name] for name in tensors if (match := pattern.fullmatch(name))}
    return {place: (weight.shape[1], weight.shape[0]) for place, weight in found.items() if weight.dim() == 2}


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
    """The tensors that are not ``ignored``, once their names and shapes are exactly the module's, and weights are
    numbers that a cast does not change the meaning of; else UserError."""
    given = {name: value for name, value in tensors.items() if name not in set(ignored)}
    wanted = module.state_dict()
    both = wanted.keys() & given.keys()
    kinds = [str(kind).removeprefix("torch.") for kind in NUMBERS]
    problems = {
        "missing": wanted.keys() - given.keys(),
        "unexpected": given.keys() - wanted.keys(),
        "of another shape": [n for n in both if wanted[n].shape != given[n].shape],
        f"stored as none of {', '.join(kinds)}": [n for n in both if _is_other_number(wanted[n], given[n])],
    }
    found = problems_of(problems)
    if found:
        raise UserError(f"{key}: the weights are not this model's; {found}")
    return given


def _is_other_number(wanted: Tensor, given: Tensor) -> bool:
    """Whether a weight is stored as what a cast would change without a word: quantised, say."""
    return wanted.is_floating_point() and given.dtype not in NUMBERS


def file_hashes(paths: Iterable[Path], root: Path = Path(".")) -> dict[str, str]:
    """sha256 by file name, for `Reward.identity`. A large file is read for it once: the Hub's cache calls weights by
    their sha256, that of other files is kept below ``root`` (`cached_digest`)."""
    return {path.name: _hub_sha256(path) or cached_digest(path, root) for path in sorted(paths)}


def _hub_sha256(path: Path) -> str | None:
    """The sha256 that the Hub's cache calls a large file by; None for any other file."""
    name = etag(path)
    return name if name is not None and _SHA256.fullmatch(name) else None


def model_hashes(folder: Path, key: str, prefix: str = "") -> dict[str, str]:
    """sha256, by name behind ``prefix``, of the files that a transformers model is read from: its weights, whatever
    their layout, configurations, tokenizer and templates. Copies that nobody reads (variants) are no part of it."""
    return _hashes(folder, scorer_files(folder, key, TRANSFORMERS_FILES), prefix)


def text_hashes(folder: Path, prefix: str = "") -> dict[str, str]:
    """As `model_hashes`, of a folder that is read without weights."""
    return _hashes(folder, plain_texts(folder), prefix)


def _hashes(folder: Path, names: Iterable[str], prefix: str) -> dict[str, str]:
    digests = file_hashes(folder / name for name in names)
    return {f"{prefix}{name}": digest for name, digest in digests.items()}
