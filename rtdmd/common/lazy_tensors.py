"""Tensors that are read or computed one at a time, and their way into a safetensors file: no more than one is held.

A whole transformer is written, compared and loaded through these, so that publishing takes no second copy of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rtdmd.common.errors import UserError
from rtdmd.common.parsing import first_line

KINDS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
"""Kinds of numbers as safetensors names them, in its order: a file has those of the later ones first."""
_NAMES = {dtype: name for name, dtype in KINDS.items()}
_PLACES = {dtype: place for place, dtype in enumerate(KINDS.values())}
Layout = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class LazyTensors(Mapping[str, Tensor]):
    """Tensors of known ``layouts`` (dtype and shape by name), each made anew by ``make`` whenever it is asked for."""

    layouts: Mapping[str, Layout]
    make: Callable[[str], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.layouts:
            raise KeyError(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layouts)

    def __len__(self) -> int:
        return len(self.layouts)


@contextmanager
def whole_tensors(path: Path | str) -> Iterator[Any]:
    """A safetensors file, open; a damaged one is a UserError that names it."""
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a complete safetensors file ({first_line(error)}); make the file again"
        ) from error


def open_tensors(path: Path) -> tuple[LazyTensors, dict[str, str]]:
    """What `load_tensors` gives, with each tensor read when it is asked for."""
    with whole_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        layouts = {name: (KINDS[one.get_dtype()], tuple(one.get_shape())) for name, one in slices.items()}
        metadata = dict(file.metadata() or {})
    return LazyTensors(layouts, lambda name: read_tensor(path, name)), metadata


def read_tensor(path: Path, name: str) -> Tensor:
    """A tensor of a safetensors file, on the CPU. The file is opened for it alone, since what was read of an open one
    stays in the process's memory."""
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into a module that has exactly these, cast to its dtypes, one at a time."""
    for name, own in module.state_dict().items():
        own.copy_(tensors[name])


def file_parts(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> Iterator[bytes | memoryview]:
    """A safetensors file piece by piece, as the library writes it, with the header's metadata sorted (the library has
    it in hash order): the header, then each tensor, on the CPU and contiguous."""
    head, begins = file_head(layouts_of(tensors), metadata)
    yield head
    for name in begins:
        flat = tensors[name].detach().cpu().contiguous().flatten()
        yield flat.view(torch.uint8).numpy().data


def file_head(layouts: Mapping[str, Layout], metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, int]]:
    """The head of a safetensors file of such tensors, and where each one's data begins, in the order of the file."""
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    begins: dict[str, int] = {}
    end = 0
    for name in sorted(layouts, key=lambda name: (-_PLACES[layouts[name][0]], name)):
        dtype, shape = layouts[name]
        begins[name] = end
        end += dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begins[name], end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the payload starts at a multiple of 8 bytes
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + begin for name, begin in begins.items()}


def layouts_of(tensors: Mapping[str, Tensor]) -> Mapping[str, Layout]:
    """(dtype, shape) by name, without making one."""
    if isinstance(tensors, LazyTensors):
        return tensors.layouts
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape by name, without making one."""
    return {name: shape for name, (_, shape) in layouts_of(tensors).items()}


def odd_names(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Names that only one of the two has; where there are none, those of tensors of another shape. None is made."""
    given = shapes_of(tensors)
    own = shapes_of(wanted)
    return sorted(given.keys() ^ own.keys()) or [name for name in own if given[name] != own[name]]


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first name, in their order, whose tensor has numbers that are not finite; None where all are."""
    return next((name for name in sorted(tensors) if not torch.isfinite(tensors[name]).all()), None)
