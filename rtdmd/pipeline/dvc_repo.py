"""DVC itself, asked: its settings, its lock, its record `dvc.lock`. Whatever is wrong is one line with a next command.

`dvc.lock` is read while nobody writes it (DVC writes it in place), and there is one definition of a whole one for all
who read it: `parse_lock`. Importing this module does not import DVC; opening it takes about a third of a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.common.errors import UserError
from rtdmd.common.yaml_text import parse_yaml_11

if TYPE_CHECKING:
    from dvc.repo import Repo

LOCK = "dvc.lock"
RECOVER = "`rtdmd recover`, then the same command again"
_MERGE = re.compile(rb"^(<<<<<<<|>>>>>>>)( |$)", re.MULTILINE)
_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@contextmanager
def opened(root: Path) -> Iterator[Repo]:
    """DVC in ``root``, under its own lock (waited for): inside the ``with`` nobody writes its files. UserError where
    DVC cannot read its files."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    try:
        with Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo):
            yield repo
    except DvcException as error:
        raise UserError(_explained(error, root)) from error


def cache_folder(root: Path) -> Path:
    """Where DVC keeps the objects of ``root``, by all of its settings (of the repository, the user, the machine)."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            return Path(repo.cache.local.path)
    except DvcException as error:
        raise UserError(_explained(error, root)) from error


def _explained(error: Exception, root: Path) -> str:
    """DVC's error in one line, with what to do about it."""
    from dvc.config import ConfigError
    from dvc.scm import SCMError

    if isinstance(error, SCMError):
        return (
            f"{root.resolve()}: DVC wants a Git repository; `git init && git add --all && git commit -m start` makes"
            " one, `dvc config --local core.no_scm true` lets DVC do without"
        )
    text = " ".join(f"{error}".split())
    reason = error.__cause__ or error.__context__
    said = " ".join(str(reason).split())[:200]
    more = f" ({said})" if reason is not None and said != text else ""
    if isinstance(error, ConfigError):
        return _explained_config(text, root)
    if "dvc.lock" in text or "rwlock" in text.lower():
        return f"{text}{more}; {RECOVER}"
    if "dvc.yaml" in text:
        return f"{text}{more}; mend it, or `git checkout dvc.yaml` brings the committed one"
    return f"dvc: {text}{more}; `dvc status` says more"


def _explained_config(text: str, root: Path) -> str:
    """Which of DVC's settings files it is, and how the error goes."""
    from dvc.config import Config, ConfigError
    from dvc.dirs import global_config_dir

    ways = {
        ".dvc/config": "mend it, or `git checkout .dvc/config` brings the committed one",
        ".dvc/config.local": "mend it, or `rm .dvc/config.local` and set again what is yours",
    }
    for name, way in ways.items():
        try:
            if (root / name).is_file():
                Config.validate(Config.load_file(str(root / name)))
        except ConfigError:
            return f"{name}: {text}; {way}"
    return f"{global_config_dir()}/config (or the machine's): {text}; mend it there"


def read_record(root: Path) -> dict[str, dict[str, Any]]:
    """The stages of ``root``'s dvc.lock as DVC wrote them (cmd, deps, params, outs), none where there is no such file.

    It is read under DVC's lock. UserError when it is not whole.
    """
    path = root / LOCK
    if not path.is_file():
        return {}
    if not (root / ".dvc").is_dir():
        return parse_lock(path.read_bytes(), str(path))
    with opened(root):
        return parse_lock(path.read_bytes(), str(path))


def parse_lock(data: bytes, name: str = LOCK) -> dict[str, dict[str, Any]]:
    """The stages that a dvc.lock records. UserError when it is not whole: cut off, with the marks of a merge, with a
    stage twice, of another form than DVC's, or with an input or output that has no hash."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        if _MERGE.search(data):
            raise UserError("it holds the marks of a merge")
        if not data.endswith(b"\n"):
            raise UserError("it is cut off")
        tree = parse_yaml_11(data.decode("utf-8"), name)
        COMPILED_LOCKFILE_SCHEMA(tree)
        stages: dict[str, dict[str, Any]] = tree.get("stages", {})
        for stage, entry in stages.items():
            for item in (*entry.get("deps", []), *entry.get("outs", [])):
                if not _MD5.fullmatch(str(item.get("md5"))):
                    raise UserError(f"{stage}: {item['path']} has no hash")
    except (UserError, UnicodeDecodeError, Invalid) as error:
        why = " ".join(str(error).removeprefix(f"{name}: ").split())
        raise UserError(f"{name}: not a whole record of DVC ({why}); {RECOVER}") from error
    return stages
