"""Rows of conditioning on disk: safetensors files of a size known beforehand, written in place and memory-mapped.

Written in place, so that a run that was killed goes on where it stopped and no row is on disk twice. What is zero for
every prompt need not be stored: SD3 widens CLIP's tokens to T5's width with zeros, and stands zeros in for a missing
T5. Tokens behind a prompt's end are no such padding: the encoders give them values, and the transformers read them.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones.protocol import Conditioning
from rtdmd.common.files import load_tensors, read_json, write_json
from rtdmd.common.lazy_tensors import file_head
from rtdmd.common.torch_setup import DTYPES

PROGRESS = "progress.json"

Encode = Callable[[Sequence[str]], Conditioning]


class NotZeroError(ValueError):
    """A number that the layout leaves out as zero is not zero."""


@dataclass(frozen=True)
class Layout:
    """What is stored of a row: the shape of each tensor's row, and of some the blocks [first, last, width] that hold
    all that is not zero (tokens first to last - 1, of each the first ``width`` numbers)."""

    dtype: str
    shapes: dict[str, tuple[int, ...]]
    blocks: dict[str, list[tuple[int, int, int]]]

    @staticmethod
    def of(cond: Conditioning, dtype: str, unpadded: bool) -> Layout:
        """The layout of rows like those of ``cond``; ``unpadded``: without what is zero in all of them."""
        shapes = {name: tuple(tensor.shape[1:]) for name, tensor in sorted(cond.tensors.items())}
        blocks = {name: _blocks(cond.tensors[name]) for name, shape in shapes.items() if unpadded and len(shape) == 2}
        cut = {name: found for name, found in blocks.items() if found != [(0, *shapes[name])]}
        return Layout(dtype, shapes, cut)

    @staticmethod
    def parse(value: Mapping[str, Any]) -> Layout:
        """The layout of its JSON form (`dataclasses.asdict`)."""
        shapes = {name: tuple(shape) for name, shape in value["shapes"].items()}
        blocks = {name: list(map(tuple, found)) for name, found in value["blocks"].items()}
        return Layout(value["dtype"], shapes, blocks)

    def stored(self) -> dict[str, tuple[int, ...]]:
        """Row shapes of the tensors in a file, by name."""
        rows: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes.items():
            if name not in self.blocks:
                rows[name] = shape
            for i, (first, last, width) in enumerate(self.blocks.get(name, [])):
                rows[f"{name}.{i}"] = (last - first, width)
        return rows

    def row_bytes(self) -> int:
        """Bytes of one row."""
        return sum(math.prod(shape) for shape in self.stored().values()) * DTYPES[self.dtype].itemsize

    def take(self, cond: Conditioning) -> dict[str, Tensor]:
        """The stored tensors of rows, on the CPU, in the layout's dtype. NotZeroError where something else is left
        out, ValueError where the rows have another shape."""
        tensors = {}
        for name, tensor in self.cast(cond).to("cpu").tensors.items():
            if tuple(tensor.shape[1:]) != self.shapes[name]:
                raise ValueError(f"{name}: rows of {tuple(tensor.shape[1:])}, but the first had {self.shapes[name]}")
            if name not in self.blocks:
                tensors[name] = tensor
                continue
            parts = [tensor[:, first:last, :width] for first, last, width in self.blocks[name]]
            if sum(int(part.count_nonzero()) for part in parts) != int(tensor.count_nonzero()):
                raise NotZeroError(f"{name}: not zero beside the blocks {self.blocks[name]}")
            tensors |= {f"{name}.{i}": part for i, part in enumerate(parts)}
        return tensors

    def give(self, tensors: Mapping[str, Tensor]) -> Conditioning:
        """The rows of stored tensors, whole again."""
        count = len(next(iter(tensors.values()))) if tensors else 0
        whole = {}
        for name, shape in self.shapes.items():
            if name not in self.blocks:
                whole[name] = tensors[name]
                continue
            whole[name] = torch.zeros(count, *shape, dtype=DTYPES[self.dtype])
            for i, (first, last, width) in enumerate(self.blocks[name]):
                whole[name][:, first:last, :width] = tensors[f"{name}.{i}"]
        return Conditioning(whole)

    def cast(self, cond: Conditioning) -> Conditioning:
        """Rows in the layout's dtype."""
        return cond.to(dtype=DTYPES[self.dtype])


def _blocks(tensor: Tensor) -> list[tuple[int, int, int]]:
    """Runs of tokens (B, L, D) with the same width up to the last number that is not zero in some row; tokens that are
    zero throughout are in none."""
    positions = torch.arange(1, tensor.shape[-1] + 1, device=tensor.device)
    widths = torch.where(tensor != 0, positions, 0).amax(dim=(0, 2)).tolist()
    runs: list[tuple[int, int, int]] = []
    for token, width in enumerate(widths):
        if runs and runs[-1][2] == width:
            runs[-1] = (runs[-1][0], token + 1, width)
        else:
            runs.append((token, token + 1, width))
    return [run for run in runs if run[2]]


def _head(layout: Layout, rows: int) -> tuple[bytes, dict[str, int]]:
    """A safetensors file's head for ``rows`` rows, and where each tensor's data begins."""
    stored = layout.stored().items()
    return file_head({name: (DTYPES[layout.dtype], (rows, *shape)) for name, shape in stored}, None)


class RowWriter:
    """Rows 0 to ``rows`` - 1 in files of ``folder``, the first rows in the first file, written in order.

    What is written survives a kill: `resume` gives the writer back with ``done`` rows.
    """

    def __init__(self, folder: Path, names: Sequence[str], rows: int, layout: Layout, done: int = 0):
        self.folder = folder
        self.names = list(names)
        self.rows = rows
        self.layout = layout
        self.done = done
        self.each = -(-rows // len(self.names))

    @staticmethod
    def resume(folder: Path, names: Sequence[str], rows: int) -> RowWriter | None:
        """The writer that was at work in ``folder``; None where there was none, or one of other files."""
        if not (folder / PROGRESS).is_file():
            return None
        found = read_json(folder / PROGRESS)
        writer = RowWriter(folder, names, rows, Layout.parse(found["layout"]), found["done"])
        same = (found["names"], found["rows"]) == (writer.names, rows)
        whole = all(path.is_file() and path.stat().st_size == size for path, size in writer._sizes())
        return writer if same and whole else None

    def begin(self) -> None:
        """Make the files at their full size, with no row in them."""
        (self.folder / PROGRESS).unlink(missing_ok=True)
        for (path, size), (first, last) in zip(self._sizes(), self.spans(), strict=True):
            with path.open("wb") as file:
                file.write(_head(self.layout, last - first)[0])
                file.truncate(size)
        self._record(0)

    def write(self, cond: Conditioning) -> None:
        """The next rows; they are on disk when this returns."""
        tensors = self.layout.take(cond)
        start = self.done
        for name, (first, last) in zip(self.names, self.spans(), strict=True):
            low = max(start, first)
            high = min(start + len(cond), last)
            if low < high:
                part = {key: tensor[low - start : high - start] for key, tensor in tensors.items()}
                self._write_part(self.folder / name, last - first, low - first, part)
        self._record(start + len(cond))

    def _write_part(self, path: Path, rows: int, first: int, tensors: Mapping[str, Tensor]) -> None:
        _, begins = _head(self.layout, rows)
        with path.open("r+b") as file:
            for name, tensor in tensors.items():
                data = tensor.contiguous().view(torch.uint8).numpy()
                file.seek(begins[name] + first * (data.nbytes // len(tensor)))
                file.write(data.data)
            file.flush()
            os.fsync(file.fileno())

    def move(self, targets: Sequence[Path]) -> None:
        """Put the complete files in place of ``targets`` and forget about them."""
        if self.done != self.rows:
            raise ValueError(f"{self.done} of {self.rows} rows are written")
        (self.folder / PROGRESS).unlink()
        for name, target in zip(self.names, targets, strict=True):
            shutil.move(self.folder / name, target)

    def spans(self) -> list[tuple[int, int]]:
        """[first, last) row of each file."""
        starts = [min(i * self.each, self.rows) for i in range(len(self.names) + 1)]
        return list(pairwise(starts))

    def _sizes(self) -> list[tuple[Path, int]]:
        """Each file and its bytes."""
        sizes = [len(_head(self.layout, b - a)[0]) + (b - a) * self.layout.row_bytes() for a, b in self.spans()]
        return [(self.folder / name, size) for name, size in zip(self.names, sizes, strict=True)]

    def _record(self, done: int) -> None:
        self.done = done
        layout = {"dtype": self.layout.dtype, "shapes": self.layout.shapes, "blocks": self.layout.blocks}
        progress = {"done": done, "rows": self.rows, "names": self.names, "layout": layout}
        write_json(self.folder / PROGRESS, progress)


class StoredRows:
    """Rows in memory-mapped files: only those that are asked for are read."""

    def __init__(self, paths: Sequence[Path], layout: Layout):
        self.layout = layout
        self.parts = [load_tensors(path)[0] for path in paths]
        counts = [len(next(iter(part.values()))) for part in self.parts]
        self.firsts = [sum(counts[:i]) for i in range(len(counts) + 1)]

    def __len__(self) -> int:
        return self.firsts[-1]

    def index(self, rows: Tensor | Sequence[int]) -> Conditioning:
        """The chosen rows, in the chosen order, on the CPU in the stored dtype."""
        rows = torch.as_tensor(rows, dtype=torch.long)
        if len(self.parts) == 1:
            return self.layout.give({name: tensor[rows] for name, tensor in self.parts[0].items()})
        part_of = torch.bucketize(rows, torch.tensor(self.firsts[1:]), right=True)
        found = {
            name: torch.empty(len(rows), *shape, dtype=DTYPES[self.layout.dtype])
            for name, shape in self.layout.stored().items()
        }
        for i, part in enumerate(self.parts):
            here = part_of == i
            for name, tensor in part.items():
                found[name][here] = tensor[rows[here] - self.firsts[i]]
        return self.layout.give(found)


class EncodedRows:
    """Rows that the text encoders give when asked; the first few (the null prompt) are stored."""

    def __init__(self, stored: StoredRows, prompts: Sequence[str], encode: Encode, batch_size: int):
        self.stored = stored
        self.prompts = prompts
        self.encode = encode
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.prompts)

    def index(self, rows: Tensor | Sequence[int]) -> Conditioning:
        """The chosen rows, in the chosen order, in the stored dtype; each prompt is encoded once."""
        wanted = torch.as_tensor(rows, dtype=torch.long)
        if int(wanted.max()) < len(self.stored):
            return self.stored.index(wanted)
        unique, inverse = torch.unique(wanted, return_inverse=True)
        prompts = [self.prompts[row] for row in unique.tolist()]
        batches = [prompts[i : i + self.batch_size] for i in range(0, len(prompts), self.batch_size)]
        return self.stored.layout.cast(Conditioning.cat([self.encode(batch) for batch in batches])).index(inverse)
