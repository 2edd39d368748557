"""A scorer in a process of its own, for weights that want another environment or another GPU's memory.

`rtdmd rewards serve <name>` runs the scorer there; here, an entry of params.yaml with a ``socket`` is a `RemoteReward`.
Both read the same entry. They speak over a Unix socket that only this user may open, in frames:

    8 bytes big-endian   length of the header
    header               UTF-8 JSON: "kind", what belongs to it, and "arrays", the shapes of the arrays that follow
    arrays               raw little-endian float32, one after the other

A frame is answered by one frame. What fails there is an error here: never a score, never code (no pickle).
"""

from __future__ import annotations

import json
import math
import os
import socket
import struct
from collections.abc import Callable, Sequence
from io import BufferedIOBase
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.rewards.protocol import Metadata, Reward, check_batch, checked

if TYPE_CHECKING:
    from rtdmd.rewards.registration import RewardParams

MAX_HEADER = 2**26  # bytes
MAX_ARRAYS = 2**33  # bytes
MAX_PATH = 100  # bytes of a Unix socket's path (the kernel has 108)


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
    (length,) = struct.unpack(">Q", start) if len(start) == 8 else (MAX_HEADER + 1,)
    if length > MAX_HEADER:
        raise RtdmdError("a scorer's process sent something that is not a frame; is it the same version of rtdmd?")
    header = _header(_exactly(file, length))
    sizes = [4 * math.prod(shape) for shape in header["arrays"]]
    if sum(sizes) > MAX_ARRAYS:
        raise RtdmdError(f"a frame of {sum(sizes)} bytes is over the limit of {MAX_ARRAYS}; lower the micro-batch")
    arrays = []
    for shape, size in zip(header.pop("arrays"), sizes, strict=True):
        values = np.frombuffer(_exactly(file, size), dtype="<f4").reshape(shape)
        arrays.append(torch.from_numpy(values.astype(np.float32)))
    return header, arrays


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise RtdmdError(f"a frame's header is not JSON ({error})") from error
    shapes = header.get("arrays") if isinstance(header, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(s, list) and all(_is_size(n) for n in s) for s in shapes):
        raise RtdmdError("a frame's header does not say the shapes of its arrays")
    return dict(header)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _exactly(file: BufferedIOBase, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise RtdmdError("a scorer's connection ended in the middle of a frame; see the output of its process")
    return data


def socket_path(params: RewardParams, root: Path) -> Path:
    """Where the entry's socket lies; UserError where the path is too long for the kernel."""
    path = root / (params.socket or "")
    if len(os.fsencode(path)) > MAX_PATH:
        raise UserError(f"rewards: {params.name}: socket: {path} is longer than {MAX_PATH} bytes; name a shorter one")
    return path


class RemoteReward:
    """`rtdmd.rewards.protocol.Reward` for a scorer behind a socket; what it is, it says when the connection opens."""

    def __init__(self, params: RewardParams, root: Path):
        path = socket_path(params, root)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise UserError(
                f"rewards: {params.name}: nobody answers on {path} ({error.strerror}); start `rtdmd rewards serve "
                f"{params.name}` in the environment that has it"
            ) from error
        self._file = self._socket.makefile("rwb")
        about, _ = self._ask({"kind": "hello"})
        if about["name"] != params.name:
            raise UserError(f"rewards: {params.name}: socket: {path} serves {about['name']}")
        self.name: str = about["name"]
        self.differentiable: bool = about["differentiable"]
        self.needs_metadata: bool = about["needs_metadata"]
        low, high = about["range"]
        self.range = (-math.inf if low is None else low, math.inf if high is None else high)
        self._identity: dict[str, Any] = about["identity"]

    def close(self) -> None:
        """End the connection; the other process goes on."""
        self._file.close()
        self._socket.close()

    def identity(self) -> dict[str, Any]:
        """See the protocol: the scorer's own, so that it does not matter which process computes."""
        return self._identity

    def to(self, device: torch.device) -> None:
        """See the protocol: the other process keeps its device."""

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """See the protocol; scores come back on the images' device, and gradients where the scorer has them."""
        check_batch(images, prompts, metadata)
        wanted = self.differentiable and torch.is_grad_enabled() and images.requires_grad
        header = {
            "kind": "score",
            "prompts": list(prompts),
            "metadata": [m if m is None else dict(m) for m in metadata],
        }

        def ask(pixels: Tensor) -> list[Tensor]:
            arrays = self._ask({**header, "gradient": wanted}, [pixels])[1]
            return [array.to(images.device) for array in arrays]

        scores: Tensor = _Remote.apply(images, ask) if wanted else ask(images)[0]
        return checked(self.name, scores)

    def _ask(self, header: dict[str, Any], arrays: Sequence[Tensor] = ()) -> tuple[dict[str, Any], list[Tensor]]:
        try:
            write_frame(self._file, header, arrays)
            answer = read_frame(self._file)
        except OSError as error:
            raise RtdmdError(f"the scorer's connection broke ({error.strerror}); see its process") from error
        if answer is None:
            raise RtdmdError("the scorer's process closed the connection; see its output")
        if answer[0]["kind"] == "error":
            kind = UserError if answer[0]["user"] else RtdmdError
            raise kind(answer[0]["message"])
        return answer


class _Remote(torch.autograd.Function):
    """A score whose gradient was computed by the other process: each image's score depends on that image alone."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, ask: Callable[[Tensor], list[Tensor]]) -> Tensor:
        scores, gradient = ask(images)
        ctx.save_for_backward(gradient.to(images.dtype))
        return scores

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[0].to(gradient.dtype).view(-1, 1, 1, 1) * gradient, None


class RewardServer(ThreadingUnixStreamServer):
    """Serves one scorer on a socket that only this user may open; several clients wait for each other.

    Raises UserError where another process already serves there. A socket file that nobody listens to is replaced.
    """

    daemon_threads = True

    def __init__(self, reward: Reward, path: Path):
        self.reward, self.path, self.lock = reward, path, Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        _free(path)
        mask = os.umask(0o177)
        try:
            super().__init__(str(path), _Handler)
        finally:
            os.umask(mask)

    def server_close(self) -> None:
        """Stop listening and remove the socket file."""
        super().server_close()
        self.path.unlink(missing_ok=True)


def _free(path: Path) -> None:
    if not path.exists():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise UserError(f"{path} is already served by another process")


class _Handler(StreamRequestHandler):
    """One client, until it closes the connection."""

    server: RewardServer

    def handle(self) -> None:
        """Answer frame by frame; what rtdmd itself finds wrong is sent, anything else ends the connection."""
        while (frame := read_frame(self.rfile)) is not None:
            try:
                header, arrays = self._answer(*frame)
            except (RtdmdError, ValueError) as error:
                header, arrays = {"kind": "error", "user": isinstance(error, UserError), "message": str(error)}, []
            write_frame(self.wfile, header, arrays)

    def _answer(self, header: dict[str, Any], arrays: list[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
        reward = self.server.reward
        if header["kind"] == "hello":
            bounds = [None if math.isinf(bound) else bound for bound in reward.range]
            about = {"name": reward.name, "differentiable": reward.differentiable, "range": bounds}
            return {
                **about,
                "kind": "hello",
                "needs_metadata": reward.needs_metadata,
                "identity": reward.identity(),
            }, []
        if header["kind"] != "score" or len(arrays) != 1:
            raise RtdmdError(f"a scorer is asked for a score of one array of images, not {header['kind']!r}")
        images = arrays[0].requires_grad_(header["gradient"])
        with self.server.lock, torch.set_grad_enabled(header["gradient"]):
            scores = reward.score(images, header["prompts"], header["metadata"])
            more = torch.autograd.grad(scores.sum(), images) if header["gradient"] else ()
        return {"kind": "scores"}, [scores, *more]
