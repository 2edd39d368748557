"""Sockets for the tests of scorers in other processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.server import RewardServer


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: sockets' paths are limited."""
    with tempfile.TemporaryDirectory(prefix="rtdmd") as name:
        yield Path(name)


@contextmanager
def served(reward: Reward, path: Path) -> Iterator[RewardServer]:
    """A thread that serves ``reward``."""
    with RewardServer(reward, path) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
