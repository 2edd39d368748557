"""Digests of large files: read once, and again whenever they may have changed."""

import os
import threading
from pathlib import Path

import pytest

from rtdmd.common import digests
from rtdmd.common.digests import cached_digest
from rtdmd.common.files import sha256_bytes

SECOND = 10**9


class Reads:
    """Files that were read, in their order."""

    def __init__(self) -> None:
        self.paths: list[Path] = []


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    found = Reads()
    real = digests.file_digest

    def counted(path: Path, algorithm: digests.Algorithm) -> str:
        found.paths.append(path)
        return real(path, algorithm)

    monkeypatch.setattr(digests, "LARGE", 1)
    monkeypatch.setattr(digests, "file_digest", counted)
    return found


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was written long before it is read."""
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    later = path.stat().st_ctime_ns + 10 * SECOND
    monkeypatch.setattr(digests.time, "time_ns", lambda: later)
    return path


def test_a_file_is_read_once_for_each_algorithm(weights: Path, reads: Reads, tmp_path: Path) -> None:
    for _ in range(3):
        assert cached_digest(weights, tmp_path) == sha256_bytes(b"weights")
        assert cached_digest(weights, tmp_path, "md5") == "63f4f1e9b725370f459720575cd5f953"
    assert reads.paths == [weights, weights]


def test_a_change_of_content_times_place_or_number_asks_again(weights: Path, reads: Reads, tmp_path: Path) -> None:
    cached_digest(weights, tmp_path)
    before = weights.stat()
    weights.write_bytes(b"WEIGHTS")  # as large, and its time of content is put back
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cached_digest(weights, tmp_path) == sha256_bytes(b"WEIGHTS")
    other = tmp_path / "other"
    other.write_bytes(b"WEIGHTS")
    other.replace(weights)
    assert cached_digest(weights, tmp_path) == sha256_bytes(b"WEIGHTS")
    (tmp_path / "link").symlink_to(weights)
    assert cached_digest(tmp_path / "link", tmp_path) == sha256_bytes(b"WEIGHTS")
    assert len(reads.paths) == 3
    assert len(list((tmp_path / ".rtdmd/hashes").glob("*[!k]"))) == 1  # one entry per file, whatever became of it


def test_a_file_as_young_as_a_step_of_its_times_is_not_trusted(
    weights: Path, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a step it may change and have the times that it had."""
    written = weights.stat().st_ctime_ns
    monkeypatch.setattr(digests.time, "time_ns", lambda: written + digests.TIME_STEP)
    cached_digest(weights, tmp_path)
    cached_digest(weights, tmp_path)
    assert len(reads.paths) == 2
    monkeypatch.setattr(digests.time, "time_ns", lambda: written + digests.TIME_STEP + 1)
    cached_digest(weights, tmp_path)
    cached_digest(weights, tmp_path)
    assert len(reads.paths) == 3


def test_a_file_that_changes_while_it_is_read_is_not_trusted(
    weights: Path, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = digests.file_digest

    def reading(path: Path, algorithm: digests.Algorithm) -> str:
        digest = real(path, algorithm)
        path.write_bytes(b"changed")
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(digests, "file_digest", reading)
        cached_digest(weights, tmp_path)
    assert cached_digest(weights, tmp_path) == sha256_bytes(b"changed")


def test_who_comes_while_a_file_is_read_waits_for_its_digest(
    weights: Path, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = digests.file_digest
    reading, go_on = threading.Event(), threading.Event()

    def slow(path: Path, algorithm: digests.Algorithm) -> str:
        reading.set()
        assert go_on.wait(60)
        return real(path, algorithm)

    monkeypatch.setattr(digests, "file_digest", slow)
    found: list[str] = []
    both = [threading.Thread(target=lambda: found.append(cached_digest(weights, tmp_path))) for _ in range(2)]
    both[0].start()
    assert reading.wait(60)
    both[1].start()
    go_on.set()
    for one in both:
        one.join(60)
    assert found == [sha256_bytes(b"weights")] * 2 and len(reads.paths) == 1


def test_the_runs_of_a_table_read_a_model_once(weights: Path, reads: Reads, tmp_path: Path) -> None:
    for run in ("one", "two"):
        for _ in range(2):  # laid out anew by each of its stages
            digests.share_digests(tmp_path / run, tmp_path)
        cached_digest(weights, tmp_path / run)
    assert reads.paths == [weights]


def test_a_small_file_is_read_each_time(
    weights: Path, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "LARGE", 8)
    for _ in range(2):
        cached_digest(weights, tmp_path)
    assert len(reads.paths) == 2 and not (tmp_path / ".rtdmd").exists()
