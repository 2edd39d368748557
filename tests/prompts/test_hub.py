"""A file of a Hub dataset: asked for at its commit, and every refusal says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import errors

from rtdmd.common.errors import UserError
from rtdmd.common.hub import fetching
from rtdmd.prompts.hub import dataset_file

KEY = "prepare_prompts.train[0]"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


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


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (refused(errors.GatedRepoError), "a/b is gated: accept its terms on https://.*/datasets/a/b, then run"),
        (refused(errors.RepositoryNotFoundError), "repo: https://.*/datasets/a/b does not exist, or needs"),
        (refused(errors.RevisionNotFoundError), f"revision: a/b has no commit {COMMIT}"),
        (refused(errors.RemoteEntryNotFoundError), f"repo: a/b has no file t.txt at {COMMIT}; see .*/tree/{COMMIT}"),
        (errors.LocalEntryNotFoundError("offline"), "t.txt of a/b at .* cannot be reached; connect once"),
        (refused(errors.HfHubHTTPError), "the Hub refused t.txt of a/b"),
    ],
)
def test_a_refusal_says_what_to_do(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match=says):
        dataset_file("a/b", COMMIT, "t.txt", KEY)


@pytest.mark.parametrize("name", ["owner/a--b", "owner/a.git", "owner/" + "x" * 97])
def test_a_name_that_the_hub_cannot_have_is_told_without_asking_it(name: str) -> None:
    from huggingface_hub import snapshot_download

    with (
        pytest.raises(UserError, match=r"^model\.teacher: 'owner/.*' is no name that the Hub has \(.+\)$"),
        fetching("model.teacher", "model.revision", name, COMMIT),
    ):
        snapshot_download(name, revision=COMMIT, local_files_only=True)
