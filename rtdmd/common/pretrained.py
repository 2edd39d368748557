"""transformers models from a folder, loaded to the last key.

`from_pretrained` alone fills a missing tensor at random and leaves an unexpected one out, with a warning at most. Here
both are errors that name the file and the key.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from rtdmd.common.errors import UserError
from rtdmd.common.model_files import bring_back, read_config, shards, tensor_headers
from rtdmd.common.parsing import first_line
from rtdmd.common.torch_setup import quiet_loading

FOREIGN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What diffusers, transformers and tokenizers raise on files that are damaged or not meant for them."""

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""Kinds of numbers, as safetensors names them, that a weight can be cast from without a change of meaning."""

COUNTS = ("position_ids", "position_index", "num_batches_tracked")
"""Endings of the names of what is no weight but a table of whole numbers."""


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
    they may have beside the model's. UserError where any other key is missing or left over or has another shape, or
    where a file is damaged.
    """
    return _exactly(kind, folder, key, (absent, ignored), dtype=dtype).requires_grad_(False).eval()


def check_pretrained(kind: Any, folder: Path, key: str, ignored: tuple[str, ...] = ()) -> None:
    """What `pretrained_exactly` refuses, without reading a weight: the model is built on the meta device."""
    _exactly(kind, folder, key, ((), ignored), dtype="auto", device_map={"": "meta"})


def _exactly(kind: Any, folder: Path, key: str, left_out: tuple[tuple[str, ...], tuple[str, ...]], **how: Any) -> Any:
    """left_out: endings of names that may be absent, and that are ignored."""
    absent, ignored = left_out
    refuse_kinds(folder, key, "model")
    try:
        with quiet_loading(), _no_key_table():
            model, info = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, with the names
                **how,
            )
    except FOREIGN as error:
        raise UserError(
            f"{key}: the weights in {folder} cannot be loaded ({first_line(error)}); {bring_back(folder)}"
        ) from error
    mismatched = [name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]]
    refuse_keys(
        folder,
        key,
        missing=[name for name in info["missing_keys"] if not name.endswith(absent)],
        unexpected=[name for name in info["unexpected_keys"] if not name.endswith(ignored)],
        mismatched=mismatched,
    )
    return model


def refuse_keys(
    folder: Path, key: str, missing: Collection[str], unexpected: Collection[str], mismatched: Collection[str]
) -> None:
    """UserError where a list is not empty: what a folder's weights lack, have too much, or have in another shape."""
    found = problems_of({"missing": missing, "unexpected": unexpected, "of another shape": mismatched})
    if found:
        raise UserError(f"{key}: the weights in {folder} are not this model's; {found}; {bring_back(folder)}")


def problems_of(names: Mapping[str, Collection[str]]) -> str:
    """What is wrong with tensors, by their names: the first five of each kind, and how many more there are; empty where
    nothing is."""
    found = []
    for what, own in names.items():
        first = sorted(own)[:5]
        more = sorted(own)[5:]
        if first:
            found.append(f"{what}: {', '.join(first)}" + (f" and {len(more)} more" if more else ""))
    return "; ".join(found)


def weight_headers(folder: Path, key: str, stem: str) -> dict[str, tuple[Path, str, tuple[int, ...]]]:
    """(file, kind of number, shape) by tensor name, from the headers of a part's safetensors files.

    UserError where an index names other tensors than its files hold, or other files of them.
    """
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    sharded = index.is_file() and not (stem == "model" and single.is_file())
    files = [folder / name for name in shards(index, key)] if sharded else [single]
    found: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for file in files:
        for name, (number, shape) in tensor_headers(file, key).items():
            found[name] = (file, number, shape)
    if sharded:
        table = read_config(index, key)["weight_map"]
        held = {name: file.name for name, (file, _, _) in found.items()}
        odd = sorted(name for name in table.keys() | held.keys() if table.get(name) != held.get(name))
        if odd:
            here = held.get(odd[0], "no file")
            there = table.get(odd[0], "no file")
            raise UserError(
                f"{key}: {index} places {odd[0]} in {there}, but it is in {here} ({len(odd)} of its tensors differ);"
                f" {bring_back(folder)}"
            )
    return found


def refuse_kinds(folder: Path, key: str, stem: str) -> None:
    """UserError where a weight is stored as a kind of number that a cast would change without a word."""
    for name, (file, number, _) in weight_headers(folder, key, stem).items():
        if number not in FLOATS and not name.endswith(COUNTS):
            raise UserError(f"{key}: {file} has {name} as {number}; allowed: {', '.join(sorted(FLOATS))}")


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
