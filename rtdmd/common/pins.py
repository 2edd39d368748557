"""Commits of Hub repositories: what an unfilled one looks like, and the sentence that asks for it.

A preset for a real backbone cannot know the commit that its user trusts, and a branch name would make results depend
on the day. So it holds a placeholder in the form of a commit: such a params.yaml can be checked, planned and dry-run,
and the first stage that would download something refuses it.
"""

from __future__ import annotations

from rtdmd.common.errors import UserError

UNPINNED = "0" * 40
"""The placeholder: no Git commit has this name."""


def require_pin(key: str, repository: str, revision: str | None, kind: str = "model") -> None:
    """UserError that gives the command to find the commit, where ``revision`` is the placeholder.

    key: the setting, for the message; kind: what the repository is to the Hub, model or dataset.
    """
    if revision == UNPINNED:
        command = ask(repository, kind)
        raise UserError(f"{key}: still the placeholder; write the commit of {repository} that you trust: {command}")


def ask(repository: str, kind: str = "model") -> str:
    """The command that prints the newest commit of a Hub repository."""
    return f"""python -c "from huggingface_hub import {kind}_info; print({kind}_info('{repository}').sha)\""""
