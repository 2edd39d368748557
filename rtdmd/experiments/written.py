"""params.yaml and dvc.yaml of the repository as a run's: made from the committed ones, and never over work of yours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, sha256_bytes, write_atomic, write_json
from rtdmd.common.processes import QUESTION_SECONDS, limited

WRITTEN = ".rtdmd/written.json"
"""SHA-256 of what `--write` wrote last, by file."""


def committed(root: Path, name: str) -> str:
    """The text of a file of ``root`` in the last commit. UserError where Git cannot tell it."""
    try:
        with limited(f"when it answers in {root.resolve()}, run this command again"):
            done = subprocess.run(
                ["git", "show", f"HEAD:./{name}"],
                cwd=root,
                env=os.environ | {"LC_ALL": "C"},
                capture_output=True,
                check=False,
                timeout=QUESTION_SECONDS,
            )
    except FileNotFoundError as error:
        raise UserError(f"{name}: git is not installed, and the published experiments start from the commit") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise UserError(
            f"{name}: the committed file cannot be read ({said}); the published experiments start from it:"
            f" `git add {name} && git commit` in the repository's root folder"
        )
    return done.stdout.decode("utf-8").replace("\r\n", "\n")


def overwrite(root: Path, texts: dict[str, str]) -> None:
    """Write these files of ``root``. UserError, before any is written, where one is neither as committed nor as this
    function left it."""
    record = root / WRITTEN
    ours: dict[str, str] = read_json(record) if record.is_file() else {}
    for name in texts:
        path = root / name
        if not path.is_file() or sha256_bytes(path.read_bytes()) == ours.get(name):
            continue
        if path.read_text(encoding="utf-8") != committed(root, name):
            raise UserError(
                f"{name}: differs from the committed file, and would be overwritten; keep yours with"
                f" `git commit {name}` or `git stash push {name}`, then run this command again"
            )
    write_json(record, {name: sha256_bytes(text.encode()) for name, text in texts.items()})
    for name, text in texts.items():
        write_atomic(root / name, text)
