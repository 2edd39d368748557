"""An answer of another process is looked at before it is used, and nobody waits for one without end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.signals import Stopped, caught, defer_signals
from rtdmd.config import reward_params
from rtdmd.rewards import remote as module
from rtdmd.rewards.frames import read_frame, write_frame
from rtdmd.rewards.remote import PROTOCOL, RemoteReward
from rtdmd.rewards.reward_models import CPU, RewardModels
from tests.rewards.fuzz_socket import ENTRY, HELLO, IMAGES, fuzz

ROUNDS = int(os.environ.get("RTDMD_FUZZ_ROUNDS", "150"))
SCORES, GRADIENT = torch.tensor([0.25, 0.5]), torch.zeros(2, 3, 4, 4)
Answer = Callable[[BufferedIOBase], None]


@contextmanager
def answering(folder: Path, answer: Answer | None = None, hello: dict[str, Any] | None = None) -> Iterator[None]:
    """A process that introduces itself and gives one ``answer``; None: it reads the question and says nothing."""
    over = Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "fuzz.sock"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as file:
                read_frame(file)
                write_frame(file, HELLO | {"number": 1} | (hello or {}))
                if hello is None and read_frame(file) is not None and answer is not None:
                    answer(file)
                over.wait(60)

        thread = Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            (folder / "fuzz.sock").unlink()


def says(*arrays: Tensor, **header: Any) -> Answer:
    return lambda file: write_frame(file, {"kind": "scores", "number": 2} | header, arrays)


def ask(folder: Path) -> Tensor:
    return RemoteReward(ENTRY, folder).score(IMAGES.clone().requires_grad_(), ["a", "b"], [None, None])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            says(SCORES[:, None], GRADIENT),
            r"arrays of shapes \[\(2, 1\), \(2, 3, 4, 4\)\], not \(2,\) and \(2, 3, 4, 4\)",
        ),
        (says(SCORES, GRADIENT[:1]), r"arrays of shapes \[\(2,\), \(1, 3, 4, 4\)\], not"),
        (says(SCORES), r"arrays of shapes \[\(2,\)\], not"),
        (says(SCORES, GRADIENT, GRADIENT), "arrays of shapes"),
        (says(SCORES, GRADIENT, kind="hello"), "answered 'hello' with arrays"),
        (says(SCORES * 3, GRADIENT), "gave 1.5 at image 1, outside its range -1 to 1"),
        (says(SCORES / 0, GRADIENT), "gave a score that is not finite, at image 0"),
        (says(SCORES, GRADIENT / 0), "gave a gradient that is not finite"),
        (says(SCORES, GRADIENT, number=1), "answered question 1, but 2 was asked"),
        (says(kind="error", message="two\nlines", user=1), "^two lines$"),
    ],
)
def test_an_answer_that_is_none_is_an_error(answer: Answer, message: str, folder: Path) -> None:
    with answering(folder, answer), pytest.raises(RtdmdError, match=message):
        ask(folder)


@pytest.mark.parametrize(
    ("hello", "kind", "message"),
    [
        (
            {"protocol": 1},
            UserError,
            f"speaks version 1 of the protocol, not {PROTOCOL}; start `rtdmd rewards",
        ),
        ({"name": "hpsv2"}, UserError, "serves hpsv2"),
        ({"differentiable": False}, RtdmdError, "says differentiable: False, but clipscore has True"),
        ({"needs_metadata": 0}, RtdmdError, "says needs_metadata: 0, but clipscore has False"),
        ({"range": [0.0]}, RtdmdError, "as the range of its scores, not two numbers"),
        ({"range": [1.0, 0.0]}, RtdmdError, "says neither what it is nor its scores' range"),
        ({"identity": ["clipscore"]}, RtdmdError, "says neither what it is"),
    ],
)
def test_a_scorer_that_is_not_what_the_entry_names_is_an_error(
    hello: dict[str, Any], kind: type[RtdmdError], message: str, folder: Path
) -> None:
    with answering(folder, hello=hello), pytest.raises(kind, match=message) as found:
        RemoteReward(ENTRY, folder)
    assert type(found.value) is kind


def test_an_answer_that_does_not_come_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.02)
    monkeypatch.setattr(module, "SLICE_SECONDS", 0.01)
    with answering(folder), pytest.raises(RtdmdError, match=r"no answer for 0\.02 s; see the output of `rtdmd rewards"):
        ask(folder)


def test_an_answer_that_stops_halfway_is_an_error_and_ends_the_connection(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL_SECONDS", 0.05)

    def half(file: BufferedIOBase) -> None:
        file.write(b"\0\0\0\0\0\0\0\x40{")
        file.flush()

    with answering(folder, half):
        remote = RemoteReward(ENTRY, folder)
        with pytest.raises(RtdmdError, match=r"stopped in the middle of a frame for 0\.05 s"):
            remote.score(IMAGES, ["a", "b"], [None, None])
        with pytest.raises(RtdmdError, match="the connection ended with an earlier fault"):
            remote.score(IMAGES, ["a", "b"], [None, None])


def test_a_signal_ends_the_wait_in_the_middle_of_a_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step puts signals off to its end, which a scorer that stalls would put off with it."""
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.02)
    monkeypatch.setattr(module, "SLICE_SECONDS", 0.01)

    def terminate(file: BufferedIOBase) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with answering(folder, terminate), pytest.raises(Stopped, match="stopped by SIGTERM"), caught(), defer_signals():
        ask(folder)


def test_an_exception_in_the_run_waits_for_no_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer waits in a thread of its own; Ctrl-C comes to the main one."""
    asked = Event()
    with answering(folder, lambda file: asked.set()):
        remote = RemoteReward(ENTRY, folder)
        reward_models = RewardModels({"clipscore": remote}, CPU, threaded=frozenset({"clipscore"}))
        batch = (IMAGES, ["a", "b"], [None, None])
        with pytest.raises(KeyboardInterrupt), reward_models.scoring([batch]) as scoring:
            assert asked.wait(60)
            raise KeyboardInterrupt
        (part,) = scoring.pending["clipscore"]
        assert isinstance(part, Future)
        with pytest.raises(RtdmdError, match="closed the connection"):
            part.result()
    assert remote._file.closed and remote._socket.fileno() == -1


def test_mutated_frames_are_errors_and_never_scores_of_another_kind(capfd: pytest.CaptureFixture[str]) -> None:
    ends = fuzz(ROUNDS, seed=0)
    assert {what: sum(counts.values()) for what, counts in ends.items()} == dict.fromkeys(ends, ROUNDS)
    assert ends["answered"]["refused"] > ROUNDS / 2 and ends["asked"]["error"] > ROUNDS / 8
    assert "Traceback" not in capfd.readouterr().err


def test_the_entry_of_the_fuzzer_is_one_of_params() -> None:
    assert reward_params(name="clipscore", model="x", socket="fuzz.sock") == ENTRY
