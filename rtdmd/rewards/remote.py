"""A scorer in a process of its own, for weights that want another environment or another GPU's memory.

`rtdmd rewards serve <name>` runs the scorer there (server.py); here, an entry of params.yaml with a ``socket`` is a
`RemoteReward`. Both read the same entry. They speak over a Unix socket that only this user may open, a frame
(frames.py) for a frame, each answer with the number of its question. An answer is looked at before it is used: what
fails there, does not come in time or is not what was asked for is an error here, never a score.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.signals import Stopped, received
from rtdmd.rewards.frames import read_frame, write_frame
from rtdmd.rewards.protocol import Metadata, check_batch, checked

if TYPE_CHECKING:
    from rtdmd.rewards.registration import RewardParams

PROTOCOL = 2
"""Of the frames' contents; raise it when either side would misread the other's."""
ANSWER_SECONDS = 600.0
"""The longest wait for an answer to begin: the slowest scorer's largest batch takes minutes."""
STALL_SECONDS = 30.0
"""The longest pause inside a frame."""
GRACE_SECONDS = 5.0
"""How long a signal that ends the run still lets an answer come, so that the step may be finished."""
SLICE_SECONDS = 0.5
MAX_PATH = 100  # bytes of a Unix socket's path (the kernel has 108)
SLACK = 1e-6  # beyond a range, for rounding


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
        self._key = f"rewards: {params.name}: socket: {path}"
        self._asked = 0
        self._closed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(STALL_SECONDS)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise UserError(
                f"rewards: {params.name}: nothing answers on {path} ({error.strerror or error}); start `rtdmd rewards "
                f"serve {params.name}` in the environment that has it"
            ) from error
        self._file = self._socket.makefile("rwb")
        self._busy = Lock()  # while a thread asks
        self.name = params.name
        try:
            self._introduce(self._ask({"kind": "hello", "protocol": PROTOCOL})[0], params)
        except BaseException:
            self.close()
            raise

    def _introduce(self, about: dict[str, Any], params: RewardParams) -> None:
        """Take what the other side says of its scorer, if that is what the entry asks for."""
        if about.get("protocol") != PROTOCOL:
            raise UserError(
                f"{self._key} speaks version {about.get('protocol')!r} of the protocol, not {PROTOCOL}; start `rtdmd"
                f" rewards serve {params.name}` again with this version of rtdmd"
            )
        if about.get("name") != params.name:
            name = params.name
            raise UserError(f"{self._key} serves {about.get('name')}; start `rtdmd rewards serve {name}` on it instead")
        promised = {"differentiable": params.differentiable, "needs_metadata": params.needs_metadata}
        for fact, expected in promised.items():
            if about.get(fact) is not expected:
                raise RtdmdError(f"{self._key} says {fact}: {about.get(fact)!r}, but {params.name} has {expected}")
        bounds = about.get("range")
        if not isinstance(bounds, list) or len(bounds) != 2 or not all(_is_bound(bound) for bound in bounds):
            raise RtdmdError(f"{self._key} gives {bounds!r} as the range of its scores, not two numbers")
        low = -math.inf if bounds[0] is None else float(bounds[0])
        high = math.inf if bounds[1] is None else float(bounds[1])
        identity = about.get("identity")
        if not isinstance(identity, dict) or identity.get("name") != params.name or not low < high:
            raise RtdmdError(f"{self._key} says neither what it is nor its scores' range: {about!r}")
        self.differentiable = params.differentiable
        self.needs_metadata = params.needs_metadata
        self.range = (low, high)
        self._identity: dict[str, Any] = identity

    def close(self) -> None:
        """End the connection; the other process goes on. A thread that waits for an answer gets an error."""
        self._closed = True
        with suppress(OSError):  # it is not connected any more
            self._socket.shutdown(socket.SHUT_RDWR)
        with self._busy, suppress(OSError):  # a thread that was waiting is done; what it had to send cannot be sent
            self._file.close()
        self._socket.close()

    def identity(self) -> dict[str, Any]:
        """The scorer's own, so that it does not matter which process computes."""
        return self._identity

    def to(self, device: torch.device) -> None:
        """The other process keeps its device."""

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """Scores come back on the images' device, and gradients where the scorer has them.

        Raises RtdmdError where the answer is not a finite score of the scorer's range for each image (and a finite
        gradient of their shape), or does not come in time.
        """
        check_batch(images, prompts, metadata)
        wanted = self.differentiable and torch.is_grad_enabled() and images.requires_grad
        header = {
            "kind": "score",
            "prompts": list(prompts),
            "metadata": [record if record is None else dict(record) for record in metadata],
            "gradient": wanted,
        }

        def ask(pixels: Tensor) -> list[Tensor]:
            answer, arrays = self._ask(header, [pixels])
            self._check(answer, arrays, [(len(pixels),), tuple(pixels.shape)] if wanted else [(len(pixels),)])
            return [array.to(images.device) for array in arrays]

        scores: Tensor = _Remote.apply(images, ask) if wanted else ask(images)[0]
        return scores

    def _check(self, answer: dict[str, Any], arrays: Sequence[Tensor], expected: Sequence[tuple[int, ...]]) -> None:
        shapes = [tuple(array.shape) for array in arrays]
        if answer["kind"] != "scores" or shapes != list(expected):
            wanted = " and ".join(map(str, expected))
            raise RtdmdError(f"{self._key} answered {answer['kind']!r} with arrays of shapes {shapes}, not {wanted}")
        scores = checked(self.name, arrays[0])
        outside = (scores < self.range[0] - SLACK) | (scores > self.range[1] + SLACK)
        if outside.any():
            place = int(outside.nonzero()[0])
            raise RtdmdError(
                f"{self._key} gave {scores[place]:.6g} at image {place}, outside its range {self.range[0]:g} to"
                f" {self.range[1]:g}"
            )
        if len(arrays) > 1 and not arrays[1].isfinite().all():
            raise RtdmdError(f"{self._key} gave a gradient that is not finite")

    def _ask(self, header: dict[str, Any], arrays: Sequence[Tensor] = ()) -> tuple[dict[str, Any], list[Tensor]]:
        """The answer to a question. After an answer that is none the connection ends: what comes next could be late."""
        if self._closed:
            raise RtdmdError(f"{self._key}: the connection ended with an earlier fault; start the run again")
        self._asked += 1
        try:
            answer = self._answer({**header, "number": self._asked}, arrays)
        except BaseException:
            self.close()
            raise
        if answer[0]["kind"] == "error":
            kind = UserError if answer[0].get("user") is True else RtdmdError
            raise kind(" ".join(str(answer[0].get("message")).split()))
        return answer

    def _answer(self, header: dict[str, Any], arrays: Sequence[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
        try:
            with self._busy:
                write_frame(self._file, header, arrays)
                self._wait()
                answer = read_frame(self._file)
        except TimeoutError as error:
            raise RtdmdError(
                f"{self._key}: the scorer's process stopped in the middle of a frame for {STALL_SECONDS:g} s; see its"
                " output"
            ) from error
        except OSError as error:
            raise RtdmdError(
                f"{self._key}: the scorer's connection broke ({error.strerror}); see its process"
            ) from error
        if answer is None:
            raise RtdmdError(f"{self._key}: the scorer's process closed the connection; see its output")
        if answer[0].get("number") != header["number"]:
            number = answer[0].get("number")
            raise RtdmdError(f"{self._key} answered question {number!r}, but {header['number']} was asked")
        return answer

    def _wait(self) -> None:
        """Until the answer begins. RtdmdError where it does not in time; Stopped soon after a signal to end the run,
        which elsewhere is put off to the end of a step."""
        end = time.monotonic() + ANSWER_SECONDS
        stopping = None
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        while not waiting.poll(1000 * SLICE_SECONDS):
            now = time.monotonic()
            if received() is not None:
                stopping = stopping or now + GRACE_SECONDS
            if stopping is not None and now > stopping:
                raise Stopped(f"stopped by {received()}")
            if now > end:
                raise RtdmdError(
                    f"{self._key}: no answer for {ANSWER_SECONDS:g} s; see the output of `rtdmd rewards serve"
                    f" {self.name}` and start it again"
                )


def _is_bound(value: Any) -> bool:
    return value is None or type(value) in (int, float)


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
