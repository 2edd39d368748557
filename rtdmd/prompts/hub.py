"""A file of a Hub dataset at a pinned commit, downloaded once and then read from the Hub's cache, offline too."""

from __future__ import annotations

from pathlib import Path

from rtdmd.common.hub import fetching


def dataset_file(repo: str, revision: str, path: str, key: str) -> Path:
    """The file on this machine. UserError that says what to do: a gated or unknown dataset, no such commit or file, no
    connection."""
    from huggingface_hub import hf_hub_download

    with fetching(f"{key}.repo", f"{key}.revision", repo, revision, file=path, then="rtdmd prepare_prompts"):
        return Path(hf_hub_download(repo, path, repo_type="dataset", revision=revision))
