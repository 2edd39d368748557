"""A file of a Hub dataset: asked for at its commit, and every refusal says what to do."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import errors

from rtdmd.common.errors import UserError
from rtdmd.common.hub import fetching
from rtdmd.prompts.files import dataset_file

KEY = "prepare_prompts.sets.train[0]"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BROKEN = rf"^prepare_prompts\.sets\.train\[0\]\.repo: t\.txt of a/b at {COMMIT} was not downloaded whole: "
AGAIN = "; run `rtdmd prepare_prompts` again$"


def test_the_commit_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def download(*args: Any, **options: Any) -> str:
        asked.append((args, options))
        return str(tmp_path / "train.txt")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert dataset_file("a/b", COMMIT, "x/train.txt", KEY) == tmp_path / "train.txt"
    assert asked == [(("a/b", "x/train.txt"), {"repo_type": "dataset", "revision": COMMIT})]


def refused(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    request = httpx2.Request("GET", "https://localhost/x")
    return kind("refused", response=httpx2.Response(404, request=request))


def xet(answer: str) -> ConnectionError:
    """hf_xet raises Python's own, with its storage's answer in its words."""
    return ConnectionError(f"Data processing error: HTTP status {answer} for url (https://localhost/x?sig=secret)")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (refused(errors.GatedRepoError), "a/b is gated: accept its terms on https://.*/datasets/a/b, then run"),
        (refused(errors.RepositoryNotFoundError), "repo: https://.*/datasets/a/b does not exist, or needs"),
        (refused(errors.RevisionNotFoundError), f"revision: a/b has no commit {COMMIT}"),
        (refused(errors.RemoteEntryNotFoundError), f"repo: a/b has no file t.txt at {COMMIT}; see .*/tree/{COMMIT}"),
        (errors.LocalEntryNotFoundError("offline"), "t.txt of a/b at .* cannot be reached; connect once"),
        (refused(errors.HfHubHTTPError), "the Hub refused t.txt of a/b"),
        (httpx2.ReadTimeout("x"), rf"{BROKEN}the connection broke \(ReadTimeout\){AGAIN}"),
        (httpx2.ProxyError("x"), rf"{BROKEN}the connection broke \(ProxyError\){AGAIN}"),
        (ConnectionResetError(104, "reset"), rf"{BROKEN}the connection broke \(ConnectionResetError\){AGAIN}"),
        (ConnectionError("?X-Amz-Signature=secret"), rf"{BROKEN}the connection broke \(ConnectionError\){AGAIN}"),
        (OSError("Consistency check failed: 3 of 4 bytes"), rf"{BROKEN}the connection broke \(OSError\){AGAIN}"),
        (
            xet("client error (403 Forbidden)"),
            rf"{BROKEN}the Hub's storage answers 403 \(is the .*`\){AGAIN}",
        ),
        (xet("server error (503 Busy)"), rf"{BROKEN}the Hub's storage answers 503{AGAIN}"),
    ],
)
def test_a_refusal_says_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match=says):
        dataset_file("a/b", COMMIT, "t.txt", KEY)


def test_a_full_disk_is_no_fault_of_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(OSError, match="No space left"):
        dataset_file("a/b", COMMIT, "t.txt", KEY)


@pytest.mark.parametrize("name", ["owner/a--b", "owner/a.git", "owner/" + "x" * 97])
def test_a_name_that_the_hub_cannot_have_is_told_without_asking_it(name: str) -> None:
    from huggingface_hub import snapshot_download

    with (
        pytest.raises(
            UserError, match=r"^model\.teacher: 'owner/.*' is not a repository name that the Hub accepts \(.+\)$"
        ),
        fetching("model.teacher", "model.revision", name, COMMIT),
    ):
        snapshot_download(name, revision=COMMIT, local_files_only=True)
