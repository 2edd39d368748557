"""Links between the pages, and the pages that code, settings and workflow name: each leads somewhere.

`python -m tools.docs` (`make lint`) prints one line for each that does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"\bdocs/(?:evidence/)?[\w-]+\.md(?:#[\w-]+)?")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
FOLDERS = ("rtdmd", "tests", "tools", "workflow", "profiles")
SUFFIXES = {".py", ".smk", ".yaml", ".json", ".rst", ".jinja", ".md"}
BESIDE = ("Makefile", "Snakefile", "dvc.yaml", "params.yaml", "pyproject.toml", "data/prompts/README.md")


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    lowered = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in lowered}


def fault(target: str, folder: Path) -> str | None:
    """What is wrong with a link's target, relative to ``folder``; None where it leads somewhere."""
    if re.match(r"\w+:", target):
        return None
    name, _, anchor = target.partition("#")
    path = folder / name if name else folder
    if not path.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(path):
        return f"{target}: {path.name} has no heading of that name"
    return None


def dead_links(root: Path, pages: list[Path]) -> Iterator[str]:
    """A line for each link of a page, and each page named elsewhere in the repository, that leads nowhere."""
    for page in pages:
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        for target in LINK.findall(text):
            found = fault(target, page if target.startswith("#") else page.parent)
            if found is not None:
                yield f"{page}: {found}"
    for file in files(root):
        for target in sorted(set(NAMED.findall(file.read_text(encoding="utf-8")))):
            found = fault(target, root)
            if found is not None:
                yield f"{file}: {found}"


def files(root: Path) -> list[Path]:
    """The files beside the pages that may name a page."""
    found = [root / name for name in BESIDE]
    for folder in FOLDERS:
        found += sorted(path for path in (root / folder).rglob("*") if path.suffix in SUFFIXES)
    return found
