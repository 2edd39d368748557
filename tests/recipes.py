"""How the documentation says a thing is added, followed word for word in a folder of its own.

A page's section holds the new files (fenced ``python``, the path in the first line's comment) and the commands (fenced
``sh``). The folder has the package and its tests by links; a folder that gets a new file is a real one.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.workspace import REPOSITORY

LINKED = ("rtdmd", "tests", "tools", "data", "docs", "workflow", "Snakefile", "dvc.yaml", "pyproject.toml", "profiles")


def section(page: str, title: str) -> str:
    """The text of a page's section, from its title to the next one."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    _, _, rest = text.partition(f"## {title}\n")
    assert rest, f"{page} has no section {title!r}"
    return rest.split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def open_folder(path: Path) -> None:
    """Turn a link to a folder, anywhere on the way to ``path``, into a folder of links."""
    for folder in reversed([path, *path.parents]):
        if folder.is_symlink():
            target = folder.resolve()
            folder.unlink()
            folder.mkdir()
            for entry in target.iterdir():
                if entry.name != "__pycache__":
                    (folder / entry.name).symlink_to(entry)


def follow(root: Path, page: str, title: str) -> str:
    """Write the section's files and run its commands in ``root``; their output, each command has to succeed."""
    text = section(page, title)
    for name in LINKED:
        if not (root / name).exists():
            (root / name).symlink_to(REPOSITORY / name)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    for content in blocks(text, "python"):
        file = root / content.splitlines()[0].removeprefix("# ")
        open_folder(file.parent)
        file.write_text(content, encoding="utf-8")
    commands = "\n".join(blocks(text, "sh"))
    for folder in re.findall(r"> (\S+)/\S+\.py", commands):
        open_folder(root / folder)
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
