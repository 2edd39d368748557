"""W&B and Trackio themselves, which `make trackers` installs: `make trackers-test`, not a part of `make test`."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.train.engine.trackers import VARIABLE
from tests.train.engine.test_trackers import FLAT, advance

BLOCK = 32768


@pytest.fixture(scope="module", autouse=True)
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Trackio looks for its folder when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(tmp_path_factory.mktemp("trackio")))
        import trackio  # noqa: F401


def stored(file: bytes) -> Iterator[bytes]:
    """The records of W&B's file: after a head of 7 bytes LevelDB's log, blocks of 32 KiB with parts of records, each
    behind checksum (4), length (2) and kind (1: whole, 2: first, 3: middle, 4: last)."""
    record, at = b"", 7
    while at < len(file):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
        length, kind = struct.unpack_from("<HB", file, at + 4)
        record = (b"" if kind in (1, 2) else record) + file[at + 7 : at + 7 + length]
        if kind in (1, 4):
            yield record
        at += 7 + length


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A session that takes up its variables anew."""
    import wandb

    monkeypatch.setenv(VARIABLE, "wandb")
    yield
    wandb.teardown()


@pytest.mark.usefixtures("wandb")
def test_wandb_offline_has_the_journal_once_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run in the folder, its records read back."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(KeyboardInterrupt):
        advance(tmp_path, 5)
    advance(tmp_path)
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    losses: list[tuple[int, float]] = []
    panels: list[int] = []
    config: dict[str, Any] = {}
    for data in stored(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        for item in record.config.update:
            config[item.key] = json.loads(item.value_json)
        row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "loss" in row:
            losses.append((row["_step"], row["loss"]))
        if any(key.startswith("panel") for key in row):
            panels.append(row["_step"])
    assert losses == [(k, 1 / k) for k in range(1, 9)]
    assert panels == [4, 8] and len(list(file.parent.glob("files/media/images/*.png"))) == 2
    assert {key: config[key] for key in FLAT} == FLAT


@pytest.mark.usefixtures("wandb")
def test_wandb_that_is_not_reached_is_one_line_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
    says = r"^RTDMD_TRACKERS: wandb does not start \(.*connection refused\); `wandb login`, or WANDB_MODE=offline"
    with pytest.raises(UserError, match=says):
        advance(tmp_path)
    assert (tmp_path / "journal.jsonl").read_text() == ""


def test_trackio_has_the_journal_once_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "trackio")
    with pytest.raises(KeyboardInterrupt):
        advance(tmp_path, 5)
    advance(tmp_path)
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("rtdmd")
    assert run.name == (tmp_path / "tracker-id").read_text().strip()
    rows = SQLiteStorage.get_logs("rtdmd", run.name)
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == [(k, 1 / k) for k in range(1, 9)]
    assert [row["step"] for row in rows if "panel" in row] == [4, 8]
    assert {key: run.config[key] for key in FLAT} == FLAT


def test_trackio_without_its_server_keeps_what_it_cannot_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "trackio")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9/?write_token=a")
    with pytest.warns(UserWarning, match="could not create a remote client for 'http://127.0.0.1:9/'"):
        assert len(advance(tmp_path).rows) == 4
    monkeypatch.setenv("TRACKIO_SERVER_URL", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"^RTDMD_TRACKERS: trackio does not start \(.*\); see its TRACKIO_ variables"):
        advance(tmp_path / "other")
