"""A file of a Hub dataset at a pinned commit, downloaded once and then read from the Hub's cache, offline too."""

from __future__ import annotations

from pathlib import Path

from rtdmd.config.pins import require_pin
from rtdmd.errors import UserError


def dataset_file(repo: str, revision: str, path: str) -> Path:
    """The file on this machine. UserError that says what to do: a gated or unknown dataset, no such commit or file, no
    connection."""
    from huggingface_hub import errors, hf_hub_download

    page = f"https://huggingface.co/datasets/{repo}"
    require_pin("prepare_prompts: revision", repo, revision, kind="dataset")
    try:
        return Path(hf_hub_download(repo, path, repo_type="dataset", revision=revision))
    except errors.GatedRepoError as error:
        raise UserError(f"{repo} is gated: accept its terms on {page}, then run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"prepare_prompts: repo: {page} does not exist, or needs `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        says = f"prepare_prompts: revision: {repo} has no commit {revision}; see {page}/commits"
        raise UserError(says) from error
    except errors.LocalEntryNotFoundError as error:
        what = f"{path} of {repo} at {revision} is not on this machine and the Hub cannot be reached"
        raise UserError(f"{what}; connect once and run `rtdmd prepare_prompts`") from error
    except errors.EntryNotFoundError as error:
        says = f"prepare_prompts: path: {repo} has no file {path} at {revision}; see {page}/tree/{revision}"
        raise UserError(says) from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"the Hub refused {path} of {repo} at {revision}: {error}") from error
