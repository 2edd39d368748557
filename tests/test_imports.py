"""No import of the package leads back to where it started, at any level: those inside functions and for types too."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.workspace import REPOSITORY


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((REPOSITORY / "rtdmd").rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a file names in an import statement, wherever it stands."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= (inner & known.keys()) or {node.module}
    return named & known.keys()


def circle_through(start: str, graph: dict[str, set[str]]) -> list[str]:
    """The modules of a circle from ``start`` back to it; none where there is none."""
    came_from, todo = dict.fromkeys(graph[start], start), list(graph[start])
    while todo:
        module = todo.pop()
        if module == start:
            path = [start]
            while came_from[path[-1]] != start or len(path) == 1:
                path.append(came_from[path[-1]])
                if path[-1] == start:
                    break
            return path
        for further in graph[module] - came_from.keys():
            came_from[further] = module
            todo.append(further)
    return []


def test_no_import_leads_back() -> None:
    known = modules()
    graph = {name: imports(path, known) for name, path in known.items()}
    assert len(graph) > 200
    circles = {name: circle for name in graph if (circle := circle_through(name, graph))}
    assert not circles
    graph["rtdmd.flow.path"] = {"rtdmd.train.rtdmd"}  # and one that there is would be found
    assert circle_through("rtdmd.train.rtdmd", graph)[0] == "rtdmd.train.rtdmd"
