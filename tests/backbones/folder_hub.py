"""A Hub of folders: `snapshot_download` without a network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects


def names_in(folder: Path) -> set[str]:
    """Names of all files of a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class FolderHub:
    """`snapshot_download` from each repository's folder, into another, by the library's own filter."""

    def __init__(self, repositories: Mapping[str, Path], cache: Path):
        self.repositories, self.cache = repositories, cache
        self.commits: set[str] = set()

    def __call__(self, repo: str, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        self.commits.add(f"{repo}@{revision}")
        source = self.repositories[repo]
        for name in filter_repo_objects(
            names_in(source), allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            target = self.cache / repo / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target)
        return str(self.cache / repo)
