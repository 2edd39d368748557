"""Damage in DVC's cache of results. An object's name is the MD5 of what it holds, and DVC believes the name: a damaged
object is handed out as a result, and recorded as if it were whole."""

from __future__ import annotations

import configparser
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from rtdmd.common.errors import UserError


def md5_file(path: Path) -> str:
    """Hex MD5 of a file's bytes, DVC's name for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def cache_folder(root: Path) -> Path:
    """Where the objects lie: `cache.dir` of `.dvc/config.local` or `.dvc/config`, or `.dvc/cache`."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([root / ".dvc/config", root / ".dvc/config.local"])
    return root / ".dvc" / config.get("cache", "dir", fallback="cache") / "files" / "md5"


def object_path(root: Path, digest: str) -> Path:
    """The place of the object with this MD5."""
    return cache_folder(root) / digest[:2] / digest[2:]


def damaged_objects(root: Path) -> Iterator[Path]:
    """Objects that do not hold what their name says. Reads the whole cache."""
    for path in sorted(cache_folder(root).glob("??/*")):
        if path.is_file() and md5_file(path) != f"{path.parent.name}{path.name}".removesuffix(".dir"):
            yield path


def refuse_truncated(root: Path) -> None:
    """UserError where the object of a result, by the record in dvc.lock, has another size than the record says. Looks
    at sizes only."""
    for out in _recorded(root).values():
        source = object_path(root, out["md5"])
        if "size" in out and source.is_file() and (size := source.stat().st_size) != out["size"]:
            raise UserError(
                f"{source}, DVC's copy of {out['path']}, is damaged ({size} bytes of {out['size']}); `rtdmd recover`, "
                "then the same command again"
            )


def refuse_damaged(root: Path, paths: Iterable[str]) -> None:
    """UserError where a file of `paths` is what a damaged object holds, by the record in dvc.lock."""
    recorded = _recorded(root)
    for path in paths:
        if path not in recorded or not (source := object_path(root, recorded[path]["md5"])).is_file():
            continue
        digest = md5_file(root / path)
        if digest != recorded[path]["md5"] and digest == md5_file(source):
            raise UserError(
                f"{path}: DVC's cache gave it damaged ({source}); `rtdmd recover`, then the same command again"
            )


def _recorded(root: Path) -> dict[str, dict[str, Any]]:
    """Every output as dvc.lock has it (path, md5, size); nothing where there is no (whole) dvc.lock."""
    try:
        tree: Any = yaml.load((root / "dvc.lock").read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        stages = tree["stages"].values()
        return {out["path"]: out for stage in stages for out in stage.get("outs", ()) if "md5" in out}
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return {}
