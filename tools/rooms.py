"""The table of rooms in CONTRIBUTING.md, made of the import contract in pyproject.toml and the rooms' own docstrings.

`python -m tools.docs --write` (`make docs`) writes it, `make lint` compares it and runs the contract (`lint-imports`).
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PAGE = "CONTRIBUTING.md"
BEGIN = "<!-- rooms: made by `make docs` of pyproject.toml and the packages' docstrings -->"
END = "<!-- end of rooms -->"


def layers(root: Path) -> list[list[str]]:
    """The rooms by layer, the highest first, as the contract lists them."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    ordered = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [layer.split(" | ") for layer in ordered]


def what_it_is(root: Path, room: str) -> str:
    """The first sentence of a room's docstring."""
    folder = root / "rtdmd" / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return first.rstrip(".")


def rows(root: Path) -> Iterator[str]:
    yield "| layer | room | what it is |"
    yield "|---|---|---|"
    found = layers(root)
    for number, layer in enumerate(found):
        for room in layer:
            folder = (root / "rtdmd" / room).is_dir()
            name = f"rtdmd/{room}/" if folder else f"rtdmd/{room}.py"
            yield f"| {len(found) - number} | `{name}` | {what_it_is(root, room)} |"


def with_rooms(text: str, root: Path) -> str:
    """A page's text with the table between its marks; the text itself where it has none."""
    table = "\n".join(rows(root))
    pattern = re.escape(BEGIN) + r".*?" + re.escape(END)
    return re.sub(pattern, lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)
