"""Frames that are not what they should be, made from right ones: bits flipped, cut short, headers with other values.

    python -m tests.rewards.fuzz_socket 2000 7        rounds, seed

Each mutated frame is read, asked of a scorer's process, and given as an answer to a run. Allowed are a frame or an
RtdmdError; an answer is scores of the right shape, finite and inside the range, or an RtdmdError. The scorer's process
answers a right question afterwards. RTDMD_FUZZ_ROUNDS sets the rounds of the test.
"""

from __future__ import annotations

import io
import json
import random
import socket
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from rtdmd.common.errors import RtdmdError
from rtdmd.config import reward_params
from rtdmd.rewards.frames import read_frame, write_frame
from rtdmd.rewards.remote import PROTOCOL, RemoteReward
from tests.rewards.conftest import served

ENTRY = reward_params(name="clipscore", model="x", socket="fuzz.sock")
IMAGES = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
HELLO = {
    "kind": "hello",
    "protocol": PROTOCOL,
    "name": "clipscore",
    "differentiable": True,
    "needs_metadata": False,
    "range": [-1.0, 1.0],
    "identity": {"name": "clipscore"},
}
QUESTION = {"kind": "score", "prompts": ["a", "b"], "metadata": [None, {"tag": "x"}], "gradient": True, "number": 2}
ODD: list[Any] = [None, True, -1, 0, 2**31, 1e308, "", "a", [], [[]], [[2]], [[2, 1]], [[2**40]], {}, {"a": 1}]


class Brightness:
    """A scorer that looks at the pictures."""

    name, differentiable, needs_metadata, range = "clipscore", True, False, (-1.0, 1.0)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def to(self, device: torch.device) -> None:
        raise AssertionError("nothing is moved here")

    def score(self, images: Tensor, prompts: Any, metadata: Any) -> Tensor:
        if images.ndim != 4 or not len(images) == len(prompts) == len(metadata):
            raise ValueError("no batch")
        return images.mean((1, 2, 3))


def frame_bytes(header: dict[str, Any], arrays: list[Tensor]) -> bytes:
    file = io.BytesIO()
    write_frame(file, header, arrays)
    return file.getvalue()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One change of a right frame."""
    kind = chance.choice(("flip", "flip in the header", "cut", "more", "value", "missing", "length"))
    length = struct.unpack(">Q", data[:8])[0]
    if kind in ("flip", "flip in the header"):
        place = chance.randrange(len(data) if kind == "flip" else 8 + length)
        return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
    if kind == "cut":
        return data[: chance.randrange(len(data))]
    if kind == "more":
        return data + chance.randbytes(chance.randrange(1, 40))
    if kind == "length":
        return struct.pack(">Q", chance.randrange(2**27)) + data[8:]
    header = json.loads(data[8 : 8 + length])
    key = chance.choice(sorted(header))
    if kind == "missing":
        del header[key]
    else:
        header[key] = chance.choice(ODD)
    text = json.dumps(header).encode()
    return struct.pack(">Q", len(text)) + text + data[8 + length :]


def try_reading(data: bytes) -> str:
    try:
        found = read_frame(io.BytesIO(data))
    except RtdmdError:
        return "refused"
    return "nothing" if found is None else "read"


def try_asking(data: bytes, path: Path) -> str:
    """What a scorer's process does with a question."""
    with socket.socket(socket.AF_UNIX) as mine:
        mine.settimeout(20)
        mine.connect(str(path))
        mine.sendall(data)
        mine.shutdown(socket.SHUT_WR)
        with mine.makefile("rb") as file:
            found = read_frame(file)
    return "ended" if found is None else found[0]["kind"]


def try_answering(data: bytes, path: Path) -> str:
    """What a run makes of an answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as file:
                read_frame(file)
                write_frame(file, HELLO | {"number": 1})
                read_frame(file)
                file.write(data)
                file.flush()

        thread = Thread(target=answer)
        thread.start()
        remote = RemoteReward(ENTRY, path.parent)
        images = IMAGES.clone().requires_grad_()
        try:
            scores = remote.score(images, ["a", "b"], [None, None])
        except RtdmdError:
            return "refused"
        finally:
            remote.close()
            thread.join()
            path.unlink()
    assert scores.shape == (2,) and scores.isfinite().all() and scores.abs().max() <= 1 + 1e-6
    scores.sum().backward()
    assert images.grad is not None and images.grad.isfinite().all()
    return "scores"


def fuzz(rounds: int, seed: int) -> dict[str, Counter[str]]:
    """How many frames came to which end, by what was done with them."""
    chance = random.Random(seed)
    question = frame_bytes(QUESTION, [IMAGES])
    answer = frame_bytes({"kind": "scores", "number": 2}, [IMAGES.mean((1, 2, 3)), torch.full_like(IMAGES, 1 / 48)])
    ends: dict[str, Counter[str]] = {"read": Counter(), "asked": Counter(), "answered": Counter()}
    with tempfile.TemporaryDirectory(prefix="rtdmd") as name, served(Brightness(), Path(name) / "server.sock"):
        for _ in range(rounds):
            ends["read"][try_reading(mutated(question, chance))] += 1
            ends["asked"][try_asking(mutated(question, chance), Path(name) / "server.sock")] += 1
            ends["answered"][try_answering(mutated(answer, chance), Path(name) / "fuzz.sock")] += 1
        assert try_asking(question, Path(name) / "server.sock") == "scores"
    return ends


if __name__ == "__main__":
    for what, counts in fuzz(int(sys.argv[1]), int(sys.argv[2])).items():
        print(what, dict(counts))
