"""Params trees with one to three random faults: wrong types, odd numbers, missing, added and exchanged keys."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    99,
    2**63,
    -(2**70),
    0.0,
    -0.0,
    0.5,
    1.0,
    1e-320,
    1e308,
    -1e-4,
    float("nan"),
    float("inf"),
    "",
    " ",
    "0",
    "1e-4",
    "true",
    "null",
    "a\nb",
    "\u202e",
    "./a/b",
    "../..",
    "owner/name",
    "x" * 300,
    [],
    [[]],
    [0],
    [None],
    [1, 2],
    [0.9, 0.999, 0.5],
    {},
    {"a": 1},
    [{"name": "ocr"}],
    [{"name": "clipscore", "model": "a", "weight": 0}],
)


def paths(tree: Any, here: Path = ()) -> Iterator[Path]:
    """Every key and item of a tree, sections included."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*here, key)
        yield from paths(value, (*here, key))


def at(tree: Any, path: Path) -> Any:
    """What stands at a path."""
    for part in path:
        tree = tree[part]
    return tree


def mutated(tree: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """A copy of ``tree`` with one to three faults."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        everywhere = list(paths(tree))
        path = draw.choice(everywhere)
        parent, key = at(tree, path[:-1]), path[-1]
        kind = draw.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            parent[key] = copy.deepcopy(at(tree, draw.choice(everywhere)))
        elif kind == 2 and isinstance(parent, dict):
            parent[draw.choice(("", "x", 7, None, f"{key}s", "warmup", "recipe"))] = parent.pop(key)
        elif kind <= 5 and isinstance(parent[key], int | float):
            parent[key] = draw.choice((-1, 0, 1, 2, 3, 10, 0.1, 1e9)) * parent[key]
        else:
            parent[key] = copy.deepcopy(draw.choice(ODD))  # a later fault may be inside it
    return tree
