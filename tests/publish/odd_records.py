"""Records of anybody's, made from a whole one by a seeded dice: other kinds, other sizes, other paths, other bytes.

`RTDMD_ROUNDS=5000 pytest -n0 tests/publish/test_odd_records.py` makes more of them.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.publish.publication import weights

PATHS = (
    *(
        "/usr",
        "/etc/shadow",
        "/dev/zero",
        "/proc/self/mem",
        "..",
        "../..",
        ".",
        "",
        "/",
        "//",
        "a/../..",
        "./a",
        "a//b",
    ),
    *("results/../../..", "data/", "a\\b", "~", "\x1b[2J", "a\nb", "\u202egnp.exe", "x" * 300, "a/" * 600, "results/"),
    *("results/x/y", "data/teacher.txt", "code", "results", "\u0000", "é", "C:\\windows"),
)
TEXTS = (
    "",
    "x",
    "\x1b]0;title\x07\x1b[31mred",
    "\r\n\nall is here as recorded\n",
    "\u202e\u2066",
    "y" * 100_000,
    "0" * 64,
    "F" * 64,
)
NUMBERS = (0, -1, 1e308, 10**300, 0.1, True, None)


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": [value]}
    return value


def odd_value(dice: random.Random) -> Any:
    """Something that may not be there."""
    kinds: list[Callable[[], Any]] = [
        lambda: dice.choice(TEXTS),
        lambda: dice.choice(NUMBERS),
        lambda: [],
        lambda: {},
        lambda: [dice.choice(TEXTS)] * dice.choice((1, 3000)),
        lambda: {dice.choice(PATHS): "0" * 64},
        lambda: {dice.choice(PATHS): dice.choice(TEXTS)},
        lambda: {str(number): "0" * 64 for number in range(dice.choice((60, 3000)))},
        lambda: deep(dice.choice((3, 30, 200))),
        lambda: {"a": {"results/b/x": "0" * 64}, "b": {"results/a/x": "0" * 64}},
    ]
    return dice.choice(kinds)()


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside nested JSON."""
    found: list[tuple[Any, Any]] = []
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            found += [(value, key), *places(value[key])]
    return found


def mutate(record: dict[str, Any], dice: random.Random) -> Any:
    """The record with one to three changes."""
    record = copy.deepcopy(record)
    for _ in range(dice.randint(1, 3)):
        found = places(record)
        if not found:
            break
        container, key = dice.choice(found)
        what = dice.choice(("value", "key", "remove", "path"))
        if what == "remove":
            del container[key]
        elif what == "key" and isinstance(container, dict):
            container[dice.choice((*PATHS, *TEXTS))] = container.pop(key)
        elif what == "path" and isinstance(container, dict):
            container[dice.choice(PATHS)] = "0" * 64
        else:
            container[key] = odd_value(dice)
    return odd_value(dice) if dice.random() < 0.05 else record


def odd_bytes(record: Any, dice: random.Random) -> bytes:
    """The record as a file: mostly JSON."""
    text = json.dumps(record)
    kinds: list[Callable[[], bytes]] = [
        lambda: text.encode()[: dice.randrange(len(text) + 1)],
        lambda: b"\xef\xbb\xbf" + text.encode(),
        lambda: b"\xff\xfe" + text.encode("utf-16-le"),
        lambda: text.replace("0", "NaN", 1).encode(),
        lambda: b"[" * 100_000,
        lambda: b'{"settings": ' + b"9" * 5000 + b"}",
        lambda: b'{"inputs": {"a": {"x\\ud800": "' + b"0" * 64 + b'"}}, "settings": {}, "versions": {}}',
        lambda: b" " * (4 * 2**20 + 1),
        lambda: dice.randbytes(200),
    ]
    return dice.choice(kinds)() if dice.random() < 0.2 else text.encode()


def write_odd(folder: Path, whole: dict[str, dict[str, Any]], dice: random.Random) -> Path:
    """A folder of records of which some are odd, or weights with an odd header; what to trace."""
    odd = dice.choice([*whole, "header"])
    if odd == "header":
        path = folder / "odd.safetensors"
        data = weights(mutate(whole["provenance.json"], dice))
        size = int.from_bytes(data[:8], "little")
        path.write_bytes(data if dice.random() < 0.7 else data[:8] + dice.randbytes(size) + data[8 + size :])
        return path
    for name, record in whole.items():
        (folder / name).write_bytes(
            odd_bytes(mutate(record, dice), dice) if name == odd else json.dumps(record).encode()
        )
    if odd == "resolved.json":
        (folder / "provenance.json").unlink()
    return folder
