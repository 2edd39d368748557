"""Frames, in which a run and a scorer's process speak over a socket:

    8 bytes big-endian   length of the header
    header               UTF-8 JSON: "kind", what belongs to it, and "arrays", the shapes of the arrays that follow
    arrays               raw little-endian float32, one after the other

A frame is data: nothing in it is ever run (no pickle), and one that is not of this form is an error.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from io import BufferedIOBase
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rtdmd.common.errors import RtdmdError
from rtdmd.common.parsing import json_value

MAX_HEADER = 2**26  # bytes
MAX_ARRAYS = 2**33  # bytes
MAX_SIDE = 2**31
DIMENSIONS = 4  # images have the most


def write_frame(file: BufferedIOBase, header: dict[str, Any], arrays: Sequence[Tensor] = ()) -> None:
    """Write one frame. Arrays are sent as float32; NaN in the header is a ValueError."""
    shapes = [list(array.shape) for array in arrays]
    text = json.dumps({**header, "arrays": shapes}, allow_nan=False).encode()
    file.write(struct.pack(">Q", len(text)) + text)
    for array in arrays:
        file.write(array.detach().cpu().float().contiguous().numpy().astype("<f4", copy=False).tobytes())
    file.flush()


def read_frame(file: BufferedIOBase) -> tuple[dict[str, Any], list[Tensor]] | None:
    """Header and float32 arrays of the next frame; None where the other side has closed the connection.

    RtdmdError where a frame ends early, is larger than the limits, or is not of this form.
    """
    start = file.read(8)
    if not start:
        return None
    length = struct.unpack(">Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
    if length > MAX_HEADER:
        raise RtdmdError("a scorer's process sent something that is not a frame; is it the same version of rtdmd?")
    header = _header(_exactly(file, length))
    shapes = header.pop("arrays")
    sizes = [4 * math.prod(shape) for shape in shapes]
    if sum(sizes) > MAX_ARRAYS:
        raise RtdmdError(f"a frame of {sum(sizes)} bytes is over the limit of {MAX_ARRAYS}; lower the micro-batch")
    arrays = []
    for shape, size in zip(shapes, sizes, strict=True):
        values = np.frombuffer(_exactly(file, size), dtype="<f4").reshape(shape)
        arrays.append(torch.from_numpy(values.astype(np.float32)))
    return header, arrays


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json_value(text.decode("utf-8"))
    except ValueError as error:
        raise RtdmdError(f"a frame's header cannot be read ({error})") from error
    shapes = header.get("arrays") if isinstance(header, dict) else None
    if not isinstance(shapes, list) or not all(_is_shape(shape) for shape in shapes):
        raise RtdmdError("a frame's header does not say the shapes of its arrays")
    if not isinstance(header.get("kind"), str):
        raise RtdmdError("a frame's header does not say what kind of frame it is")
    return dict(header)


def _is_shape(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > DIMENSIONS:
        return False
    return all(type(side) is int and 0 <= side < MAX_SIDE for side in value)


def _exactly(file: BufferedIOBase, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise RtdmdError("a scorer's connection ended in the middle of a frame; see the output of its process")
    return data
