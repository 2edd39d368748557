"""Damage in DVC's cache of results. An object's name is the MD5 of what it holds, and DVC believes the name: a damaged
object is handed out as a result, and recorded as if it were whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rtdmd.common.digests import cached_digest
from rtdmd.common.errors import UserError
from rtdmd.common.files import md5_file
from rtdmd.pipeline.dvc_repo import LOCK, RECOVER, cache_folder, read_record

_OBJECT = re.compile(r"[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?")


def object_path(cache: Path, digest: str) -> Path:
    """The place of the object with this MD5 in a cache (`cache_folder`)."""
    return cache / digest[:2] / digest[2:]


def damaged_objects(cache: Path) -> Iterator[Path]:
    """Objects that do not hold what their name says. Reads the whole cache; what else lies there (temporary files of a
    killed download, of another project that shares the cache) is no object."""
    for path in sorted(cache.glob("??/*")):
        name = f"{path.parent.name}/{path.name}"
        if path.is_file() and _OBJECT.fullmatch(name) and md5_file(path) != digest_of(path):
            yield path


def digest_of(path: Path) -> str:
    """The MD5 that an object's name claims (of a folder's object without its ending)."""
    return f"{path.parent.name}{path.name}".removesuffix(".dir")


def refuse_truncated(root: Path) -> None:
    """UserError where the object of a result, by the record in dvc.lock, has another size than the record says. Looks
    at sizes only."""
    outs = recorded_outs(read_record(root))
    cache = cache_folder(root) if outs else root
    for out in outs.values():
        source = object_path(cache, out["md5"])
        if "size" in out and source.is_file() and (size := source.stat().st_size) != out["size"]:
            raise UserError(
                f"{source}, DVC's copy of {out['path']}, is damaged ({size} bytes of {out['size']}); {RECOVER}"
            )


def refuse_damaged(root: Path, paths: Iterable[str]) -> None:
    """UserError where a file of `paths` is what a damaged object holds, by the record in dvc.lock."""
    if not (root / LOCK).is_file():
        return
    recorded = recorded_outs(read_record(root))
    wanted = [path for path in paths if path in recorded]
    cache = cache_folder(root) if wanted else root
    for path in wanted:
        source = object_path(cache, recorded[path]["md5"])
        if not source.is_file():
            continue
        digest = cached_digest(root / path, root, "md5")
        if digest != recorded[path]["md5"] and digest == md5_file(source):
            raise UserError(f"{path}: DVC's cache gave it damaged ({source}); {RECOVER}")


def recorded_outs(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every output of dvc.lock's stages as DVC has it (path, md5, size), by its path."""
    return {out["path"]: out for stage in stages.values() for out in stage.get("outs", ())}
