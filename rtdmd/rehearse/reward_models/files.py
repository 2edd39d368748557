"""What lies in a model's repository beside its weights."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

PAGES = (".gitattributes", "README.md")


def write_beside(folder: Path, *names: str) -> None:
    """Write what is not read, pages for people and other copies of the weights: files of these ``names``, where they
    are not there yet. None of them can be loaded, so that whoever takes one for the model fails."""
    for name in (*PAGES, *names):
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"Not read by any scorer: {name}\n", encoding="utf-8")


def write_fast(folder: Path, tokenizer: Any) -> None:
    """Write the tokenizer.json that repositories have beside the older vocabulary; tokenizer: the class that reads
    it."""
    with tempfile.TemporaryDirectory() as made:
        tokenizer.from_pretrained(folder, local_files_only=True).save_pretrained(made)
        shutil.copy(Path(made) / "tokenizer.json", folder)
