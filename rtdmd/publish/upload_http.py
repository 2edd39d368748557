"""Patience with the Hub: what passes is waited for, what does not is one line, and no line ever holds the token.

The Hub's client retries some requests itself, others (create, commit, tag) not at all, since it cannot know whether a
request whose answer was lost was carried out. Whoever calls `Patience.call` can know: its actions look first at what is
there, so that they may be repeated at any point.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    parse_ratelimit_headers,
)
from huggingface_hub.utils._http import default_client_factory

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.hub import XET_STATUS

T = TypeVar("T")
PASSING_STATUS = frozenset({408, 409, 412, 425, 429})
"""409: another commit is under way; 412: the branch has moved since we looked. Both are looked at again. All of the
server's own errors (5xx) pass too."""
NETWORK = (
    httpx2.TimeoutException,
    httpx2.NetworkError,
    httpx2.RemoteProtocolError,
    ConnectionError,  # hf_xet raises Python's own
    TimeoutError,
)
TIMEOUT = httpx2.Timeout(30.0, read=300.0, write=300.0)  # seconds; the client's own default is to wait for ever
LONGEST_ASKED = 600.0  # s; two of the Hub's own windows of five minutes
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, to a token that may write to the repository"
HIDDEN = "<token>"


def narrate(line: str) -> None:
    """Tell people what happens, on the error stream: what a command prints is its result."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Patience:
    """How often and how long to wait for what passes: first, 2 first, 4 first, ... seconds, or as long as the Hub's
    ``Retry-After`` asks."""

    attempts: int = 6
    first: float = 1.0  # s
    longest: float = 60.0  # s
    sleep: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = narrate

    def call(self, what: str, action: Callable[[], T]) -> T:
        """The action's result. RtdmdError when faults outlast the patience, UserError for what waiting cannot mend;
        neither holds the token, and nor does the exception's cause."""
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
                fault = Fault.of(error)
            if not fault.passing:
                raise fault.final(what)
            if attempt < self.attempts:
                pause = max(min(self.longest, self.first * 2 ** (attempt - 1)), fault.retry_after)
                self.say(f"{what}: {fault.text}; again in {pause:g} s ({attempt} of {self.attempts - 1})")
                self.sleep(pause)
        raise RtdmdError(f"{what}: {fault.text}, {self.attempts} times; the same command goes on from here")


@dataclass(frozen=True)
class Fault:
    """What went wrong, in words without secrets."""

    text: str
    passing: bool
    status: int | None = None
    retry_after: float = 0.0  # s

    @classmethod
    def of(cls, error: BaseException) -> Fault:
        """The fault behind an error of the Hub's client, which may wrap it several times."""
        for cause in _chain(error):
            if isinstance(cause, HfHubHTTPError):
                return cls._of_answer(cause)
            answered = XET_STATUS.search(str(cause)) if isinstance(cause, OSError | RuntimeError) else None
            if answered is not None:
                return cls._of_status(int(answered["status"]), "the Hub's storage")
            if isinstance(cause, NETWORK):
                return cls(f"the connection broke ({type(cause).__name__})", passing=True)
            if isinstance(cause, json.JSONDecodeError):
                return cls("the answer is no JSON", passing=True)
        short = type(error) is OSError and error.errno is None  # the client's own check of a download's length
        return cls(redact(str(error)) or type(error).__name__, passing=short)

    @classmethod
    def _of_status(cls, status: int, who: str, message: str = "", retry_after: float = 0.0) -> Fault:
        """What an answer's status says, by whichever road it came."""
        text = f"{who} answers {status}" + (f" ({message})" if message else "")
        return cls(text, status in PASSING_STATUS or status >= 500, status, retry_after)

    @classmethod
    def _of_answer(cls, error: HfHubHTTPError) -> Fault:
        response = error.response
        lines = redact(error.server_message or "").splitlines()
        message = lines[0][:200] if lines else ""
        fault = cls._of_status(response.status_code, "the Hub", message, _asked_for(response))
        damaged = fault.status == 400 and response.request.method == "PUT"  # the store compares what arrived
        return replace(fault, passing=fault.passing or damaged)

    def final(self, what: str) -> RtdmdError:
        """The error for a fault that waiting does not mend."""
        if self.status == 401:
            return UserError(f"{what}: {self.text}: the token is missing, expired or wrong; {LOG_IN}")
        if self.status == 403:
            return UserError(f"{what}: {self.text}: the token may not do this; {LOG_IN}")
        if self.status == 404:
            return UserError(f"{what}: {self.text}: no such repository, revision or file, or the token may not see it")
        return RtdmdError(f"{what}: {self.text}")


def _asked_for(response: httpx2.Response) -> float:
    """Seconds that an answer asks to wait: its ``Retry-After``, or the reset of an exhausted ``RateLimit``."""
    asked = response.headers.get("Retry-After", "")
    limit = parse_ratelimit_headers(response.headers)
    if not asked.isdigit() and limit is not None and limit.remaining == 0:
        asked = str(limit.reset_in_seconds)
    return min(float(asked), LONGEST_ASKED) if asked.isdigit() else 0.0


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def repository_files(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    """Every file of a revision, by its path."""
    entries = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def redact(text: str) -> str:
    """The text without the token in use, anything that looks like one, and signatures of signed addresses."""
    token = get_token()
    if token:
        text = text.replace(token, HIDDEN)
    text = re.sub(r"\b(hf|api_org|hf_oauth|hf_jwt)_[A-Za-z0-9][A-Za-z0-9.-]{18,}", HIDDEN, text)
    text = re.sub(r"(?i)\b(bearer)\s+\S+", rf"\1 {HIDDEN}", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:signature|sig|token|credential)[^=&\s]*=)[^&\s'\"]+", rf"\1{HIDDEN}", text)


class _Redacting(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = redact(record.getMessage())
        record.args = None
        return True


@contextmanager
def hub_session(write: bool = True) -> Iterator[None]:
    """A session with the Hub: requests time out, and what the client logs holds no secret.

    UserError without a token to ``write`` with, or when the client is told to stay offline.
    """
    if constants.is_offline_mode():
        raise UserError("HF_HUB_OFFLINE is set: the Hub cannot be asked; unset it")
    if write and get_token() is None:
        raise UserError(f"no token for the Hub; {LOG_IN}")
    logger = logging.getLogger("huggingface_hub")
    hidden = _Redacting()
    handlers = [*logger.handlers, *logging.getLogger().handlers]
    bars = sys.stderr.isatty() or are_progress_bars_disabled()  # in a log file, bars are noise
    for handler in handlers:
        handler.addFilter(hidden)
    if not bars:
        disable_progress_bars()
    set_client_factory(_client)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)
        if not bars:
            enable_progress_bars()
        for handler in handlers:
            handler.removeFilter(hidden)


class _NobodyThere(RuntimeError):
    """No connection, in words that the Hub's client does not know and so does not wait for."""


class _Client(httpx2.Client):
    """A client by which whoever cannot be reached is our `Patience`'s alone: the Hub's own waits five times for each
    connection, and a command without a network would take six times half a minute. What breaks off on its way is left
    to it: it sends one part of a file again, and we all of it."""

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """As ever, but for the name of an error."""
        try:
            return super().send(request, **options)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _NobodyThere from error


def _client() -> httpx2.Client:
    usual = default_client_factory()
    return _Client(event_hooks=usual.event_hooks, follow_redirects=usual.follow_redirects, timeout=TIMEOUT)
