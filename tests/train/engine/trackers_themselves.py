"""W&B and Trackio themselves, which `make trackers` installs: `make trackers-test`, not a part of `make test`."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.stages import train_rtdmd
from rtdmd.train.engine import tracker_kinds
from rtdmd.train.engine.trackers import VARIABLE
from tests.train.engine.test_trackers import FLAT, advance
from tests.train.workshop import results
from tests.workspace import set_params

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


def records(file: Path) -> Iterator[Any]:
    """The same, read, once W&B's process has written all of it."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()
    for data in stored(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        yield record


def history(file: Path) -> list[tuple[int, float]]:
    """(step, loss) of the file's rows."""
    rows = []
    for record in records(file):
        items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "loss" in items:
            rows.append((items["_step"], items["loss"]))
    return rows


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A session that takes up its variables anew."""
    import wandb

    monkeypatch.setenv(VARIABLE, "wandb")
    yield
    wandb.teardown()


class Cloud:
    """W&B's service on this machine, as far as its client asks for a run: who one is, what it has of a run, its history
    line by line, and places for files."""

    def __init__(self) -> None:
        self.runs: dict[str, list[str]] = {}
        self.config: dict[str, Any] = {}
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                text = json.dumps(cloud.reply(self.path, body, f"http://{self.headers['Host']}")).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        """From now on nothing answers."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def reply(self, path: str, body: bytes, url: str) -> dict[str, Any]:
        """What a request gets."""
        if path.endswith("/file_stream"):
            name = path.split("/")[-2]
            part = json.loads(body).get("files", {}).get("wandb-history.jsonl")
            if part:
                self.runs[name][part["offset"] :] = part["content"]
            return {}
        if path != "/graphql":
            return {}
        question = json.loads(body)
        given = question.get("variables") or {}
        asked = re.search(r"(?:query|mutation) (\w+)", question["query"])
        entity = {"id": "1", "name": "me"}
        project = {"id": "2", "name": "rtdmd", "entity": entity}
        match asked and asked[1]:
            case "Viewer":
                return {"data": {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": None}}}
            case "RunResumeStatus":
                return {"data": {"model": {**project, "bucket": self.bucket(given["name"], project)}}}
            case "UpsertBucket":
                self.runs.setdefault(given["name"], [])
                self.config |= json.loads(given.get("config") or "{}")
                bucket = self.bucket(given["name"], project)
                return {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{url}/upload"} for name in given["files"]]
                return {"data": {"createRunFiles": {"runID": "3", "uploadHeaders": [], "files": files}}}
        return {"data": None}

    def bucket(self, name: str, project: dict[str, Any]) -> dict[str, Any] | None:
        """What it has of a run."""
        if name not in self.runs:
            return None
        lines = self.runs[name]
        counts = {"logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0}
        tails = {"historyTail": json.dumps(lines[-1:]), "eventsTail": "[]", "summaryMetrics": "{}", "config": "{}"}
        about = {"id": name, "name": name, "displayName": name, "description": None, "sweepName": None, "tags": []}
        return about | counts | tails | {"notes": None, "wandbConfig": '{"t": {}}', "project": project}

    def history(self, column: str) -> list[tuple[int, Any]]:
        """(step, value) of the only run, of the lines that have the column."""
        (lines,) = self.runs.values()
        rows = [json.loads(line) for line in lines]
        return [(row["_step"], row[column]) for row in rows if column in row]


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """The service that W&B's client finds."""
    found = Cloud()
    monkeypatch.setenv("WANDB_BASE_URL", found.url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    yield found
    found.close()


@pytest.mark.usefixtures("wandb")
def test_wandb_goes_on_with_its_run_after_a_kill(tmp_path: Path, cloud: Cloud) -> None:
    """Ended after step 5, all of which it has; resumed from step 3."""
    with pytest.raises(KeyboardInterrupt):
        advance(tmp_path, 5)
    assert [step for step, _ in cloud.history("loss")] == [1, 2, 3, 4, 5]
    advance(tmp_path)
    assert cloud.history("loss") == [(k, 1 / k) for k in range(1, 9)]
    assert [step for step, _ in cloud.history("image_log")] == [4, 8]


@pytest.mark.usefixtures("wandb")
def test_wandb_out_of_reach_in_the_middle_does_not_end_the_training(
    tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it did not get is in the run folder."""
    monkeypatch.setattr(tracker_kinds, "PATIENCE", 4.0)
    with monkeypatch.context() as patch:
        log = tracker_kinds.Wandb.log

        def log_and_lose(self: Any, values: dict[str, Any], step: int) -> None:
            if step == 3 and "loss" in values:
                cloud.close()
            log(self, values, step=step)

        patch.setattr(tracker_kinds.Wandb, "log", log_and_lose)
        assert len(advance(tmp_path).rows) == 4
    (file,) = (tmp_path / "wandb").glob("run-*/*.wandb")
    assert history(file) == [(k, 1 / k) for k in range(1, 9)]


@pytest.mark.usefixtures("wandb")
def test_wandb_offline_has_the_journal_once_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run in the folder, its records read back."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(KeyboardInterrupt):
        advance(tmp_path, 5)
    advance(tmp_path)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    config: dict[str, Any] = {}
    for record in records(file):
        for item in [*record.run.config.update, *record.config.update]:
            config[item.key] = json.loads(item.value_json)
    assert history(file) == [(k, 1 / k) for k in range(1, 9)]
    assert len(list(file.parent.glob("files/media/images/*.png"))) == 2
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
    assert not (tmp_path / "journal.jsonl").exists()


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
    assert [row["step"] for row in rows if "image_log" in row] == [4, 8]
    assert {key: run.config[key] for key in FLAT} == FLAT


def test_trackio_without_its_server_keeps_what_it_cannot_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "trackio")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:9/?write_token=a")
    with pytest.warns(UserWarning, match="could not create a remote client for 'http://127.0.0.1:9/'"):
        assert len(advance(tmp_path).rows) == 4
    monkeypatch.setenv("TRACKIO_SERVER_URL", "127.0.0.1:9")
    with pytest.raises(UserError, match=r"^RTDMD_TRACKERS: trackio does not start \(.*\); see its TRACKIO_ variables"):
        advance(tmp_path / "other")


@pytest.mark.usefixtures("wandb")
def test_all_of_them_change_no_byte_of_a_stage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage two with image grids, shown nowhere and everywhere."""
    settings = {"epochs": 4, "save_every": 2, "image_log_every": 2}
    set_params(root, {"train_rtdmd": settings})
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = []
    for names in ("", "dvclive,tensorboard,trackio,wandb"):
        monkeypatch.setenv(VARIABLE, names)
        shutil.rmtree(root / ".rtdmd", ignore_errors=True)
        train_rtdmd.run(root)
        found.append(results(root, "train_rtdmd"))
    assert found[0] == found[1] and "generator.safetensors" in found[0]
    (run,) = (root / ".rtdmd/runs").iterdir()
    assert {"dvclive", "tensorboard", "tracker-id", "wandb"} <= {path.name for path in run.iterdir()}
