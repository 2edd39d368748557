"""What the Hub refuses, as one sentence that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rtdmd.common.errors import UserError
from rtdmd.common.parsing import first_line
from rtdmd.common.pins import require_pin

XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((?P<status>\d{3})\b")
"""hf_xet, which carries large files by default, raises ConnectionError for whatever its storage answers; the answer's
status is in its words only."""
REFUSED = ("401", "403")
NETWORK = (ConnectionError, TimeoutError)


@contextmanager
def fetching(
    key: str, pin: str, repository: str, revision: str | None, file: str | None = None, then: str | None = None
) -> Iterator[None]:
    """Around a download at a pinned commit, of a dataset's ``file`` or of a model: its errors become UserError.

    key, pin: the settings that name repository and commit, for the messages; then: the command that downloads, to run
    once connected. Before the download UserError where ``revision`` is the placeholder.
    """
    import httpx2
    from huggingface_hub import errors

    kind = "model" if file is None else "dataset"
    page = f"https://huggingface.co/{'' if file is None else 'datasets/'}{repository}"
    what = f"{repository if file is None else f'{file} of {repository}'} at {revision}"
    require_pin(pin, repository, revision, kind=kind)
    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(
            f"{key}: {repository!r} is not a repository name that the Hub accepts ({first_line(error)})"
        ) from error
    except errors.GatedRepoError as error:
        message = f"{key}: {repository} is gated: accept its terms on {page}, then run `hf auth login`"
        raise UserError(message) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{key}: {page} does not exist, or needs `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{pin}: {repository} has no commit {revision}; see {page}/commits") from error
    except errors.LocalEntryNotFoundError as error:
        hint = f"; connect once and run `{then}`" if then else ""
        raise UserError(f"{key}: {what} is not on this machine and the Hub cannot be reached{hint}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{key}: {repository} has no file {file or ''} at {revision}; see {page}/tree/{revision}"
        ) from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"{key}: the Hub refused {what}: {first_line(error)}") from error
    except (httpx2.TransportError, errors.XetDownloadError, OSError, RuntimeError) as error:
        fault = _broken_off(error)
        if fault is None:
            raise
        again = f"run `{then}` again" if then else "run the same command again"
        raise UserError(f"{key}: {what} was not downloaded whole: {fault}; {again}") from error


def _broken_off(error: Exception) -> str | None:
    """What ended a download on its way, None for what has another cause (a full disk). The client's own words stay out:
    they hold signed addresses."""
    answered = XET_STATUS.search(str(error))
    if answered is not None and answered["status"] in REFUSED:
        return f"the Hub's storage answers {answered['status']} (is the token expired? `hf auth login`)"
    if answered is not None:
        return f"the Hub's storage answers {answered['status']}"
    of_system = isinstance(error, OSError) and error.errno is not None and not isinstance(error, NETWORK)
    if of_system or isinstance(error, RuntimeError):
        return None
    return f"the connection broke ({type(error).__name__})"


def etag(path: Path) -> str | None:
    """What the Hub calls a file of its cache (of weights the sha256, of a small file Git's hash): the name of the blob
    that the file's link leads to. None for any other file."""
    target = path.resolve()
    return target.name if path.is_symlink() and target.parent.name == "blobs" else None
