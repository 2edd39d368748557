"""The other side of remote.py: a scorer that answers on a Unix socket until it is stopped."""

from __future__ import annotations

import math
import os
import socket
import stat
import sys
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.rewards.frames import read_frame, write_frame
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.remote import PROTOCOL

PROBE_SECONDS = 5.0


class RewardServer(ThreadingUnixStreamServer):
    """Serves one scorer on a socket that only this user may open; several clients wait for each other.

    Raises UserError where another process already serves there, where something is there that is no socket, and where
    none can be made. A socket file that nobody listens to is replaced.
    """

    daemon_threads = True

    def __init__(self, reward: Reward, path: Path):
        self.reward = reward
        self.path = path
        self.lock = Lock()
        self._made: tuple[int, int] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        make_room(path, reward.name)
        mask = os.umask(0o177)
        try:
            super().__init__(str(path), _Handler)
        except OSError as error:
            raise UserError(
                f"rewards: {reward.name}: socket: {path} cannot be listened on ({error.strerror}); name a new path, on"
                " a file system that has sockets"
            ) from error
        finally:
            os.umask(mask)
        self._made = _file_id(path)

    def server_close(self) -> None:
        """Stop listening and remove the socket file, unless another one has taken its place."""
        super().server_close()
        if self._made is not None and _file_id(self.path) == self._made:
            self.path.unlink()


def _file_id(path: Path) -> tuple[int, int] | None:
    """What tells the file at ``path`` from any other, a link's own; None where there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def make_room(path: Path, name: str) -> None:
    """Remove the socket file at ``path`` that nobody listens to, and nothing else; UserError where it is not free."""
    if _file_id(path) is None:
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise UserError(f"rewards: {name}: socket: {path} exists and is not a socket; name a new path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except (TimeoutError, BlockingIOError):
            pass  # somebody listens, and has no time or a full queue
        except OSError as error:
            raise UserError(
                f"rewards: {name}: socket: {path} cannot be asked whether it is served ({error.strerror}); name a new"
                " path"
            ) from error
    raise UserError(f"{path} is already served by another process; stop that one, or name another path in `socket`")


class _Handler(StreamRequestHandler):
    """One client, until it closes the connection."""

    server: RewardServer

    def handle(self) -> None:
        """Answer frame by frame; what rtdmd itself finds wrong is sent, anything else ends the connection."""
        try:
            while (frame := read_frame(self.rfile)) is not None:
                header, arrays = self._reply(*frame)
                write_frame(self.wfile, {**header, "number": frame[0].get("number")}, arrays)
        except (RtdmdError, OSError) as error:  # no frame came, or nobody reads the answer
            print(f"{self.server.reward.name}: a connection ended: {error}", file=sys.stderr, flush=True)

    def _reply(self, header: dict[str, Any], arrays: list[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
        try:
            return self._answer(header, arrays)
        except (RtdmdError, ValueError) as error:
            return {"kind": "error", "user": isinstance(error, UserError), "message": str(error)}, []

    def _answer(self, header: dict[str, Any], arrays: list[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
        reward = self.server.reward
        if header["kind"] == "hello":
            about = {
                "kind": "hello",
                "protocol": PROTOCOL,
                "name": reward.name,
                "differentiable": reward.differentiable,
                "needs_metadata": reward.needs_metadata,
                "range": [None if math.isinf(bound) else bound for bound in reward.range],
                "identity": reward.identity(),
            }
            return about, []
        prompts, metadata, gradient = _question(header, arrays)
        images = arrays[0].requires_grad_(gradient)
        with self.server.lock, torch.set_grad_enabled(gradient):
            scores = reward.score(images, prompts, metadata)
            more = torch.autograd.grad(scores.sum(), images) if gradient else ()
        return {"kind": "scores"}, [scores, *more]


def _question(header: dict[str, Any], arrays: list[Tensor]) -> tuple[list[str], list[dict[str, Any] | None], bool]:
    """Prompts, metadata and whether a gradient is asked for; RtdmdError where a frame is no such question."""
    if header["kind"] != "score" or len(arrays) != 1:
        raise RtdmdError(f"a scorer is asked for a score of one array of images, not {header['kind']!r}")
    prompts, metadata, gradient = (header.get(key) for key in ("prompts", "metadata", "gradient"))
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise RtdmdError("the question's prompts are not a list of texts")
    if not isinstance(metadata, list) or not all(record is None or isinstance(record, dict) for record in metadata):
        raise RtdmdError("the question's metadata are not a list of records")
    if not isinstance(gradient, bool):
        raise RtdmdError("the question does not say whether a gradient is wanted")
    return prompts, metadata, gradient
