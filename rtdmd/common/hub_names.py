"""Names of Hub repositories: which ones the Hub can have, by one rule for every setting that names one."""

from __future__ import annotations

import re

HUB_NAME_RULE = (
    "each of ASCII letters, digits, '-', '_', '.', without '--' or '..', not beginning or ending in '-' or '.', not"
    " ending in .git, 96 characters at most together"
)
_HUB_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_name(text: str) -> bool:
    """Whether the Hub may have a repository of this name, `owner/name` or (old ones) `name`: its own rules."""
    parts = text.split("/")
    legal = len(parts) <= 2 and all(_HUB_PART.fullmatch(part) for part in parts)
    return legal and len(text) <= 96 and "--" not in text and ".." not in text and not text.endswith(".git")


def is_owner_and_name(text: str) -> bool:
    """Whether the Hub may have a repository of this name, where old ones without an owner are not meant."""
    return text.count("/") == 1 and is_hub_name(text)


def means_hub(text: str) -> bool:
    """Whether a setting that is a folder or a Hub id means the Hub: it has two parts, and none of `./a/b`, `/a`, `..`.
    The name need not be one that the Hub can have (`require_hub_name`)."""
    return _ID.fullmatch(text) is not None


def require_hub_name(key: str, text: str) -> None:
    """ValueError, which names ``key``, where ``text`` means a Hub repository that the Hub cannot have."""
    if means_hub(text) and not is_hub_name(text):
        raise ValueError(
            f"{key}: {text!r}; allowed: owner/name, {HUB_NAME_RULE} (a local folder of that name is written ./{text})"
        )
