"""Seeded mutations of files for fuzzers: what an editor, a bad disk or another program could make of them.

A reader holds when every mutated file is either read or refused by a `UserError` of one line. How many rounds:
tests/fuzz.py.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from rtdmd.common.errors import UserError
from tests.fuzz import dice, rounds

WORDS = (
    *("", "null", "~", "true", "yes", "off", "-1", "0", "050", "0o17", "1_000", "1e999", "-1e-999", ".nan", "NaN"),
    *("1:30", "2024-02-30", "9" * 5000, "0x" + "f" * 60, "[]"),
    *("{}", "[[]]", "[{}]", "{a: 1}", '{"a": 1}', "[1, 2", "}"),
    *("&a [*a]", "*a", "<<: 1", "!!int x", "!!set {a}", "%YAML 1.1", "---", "...", "\\ud800", '"\\ud800"', '"\\u0000"'),
    *("../../x", "a--b/c--d", "owner/a--b", "/dev/null", "x" * 5000, "σ", "\ufeff", "\u2028", "\x00", "\x1b", "\udc80"),
    *('"', '""', "'", "#", ": ", "- ", "\t", "\r", "\n", "\n\n", ",", "[" * 2000, "{" * 2000),
)
"""Text that is put in the place of other text."""


def mutated(data: bytes, rng: random.Random) -> bytes:
    """``data`` after one to three changes."""
    for _ in range(rng.randint(1, 3)):
        data = rng.choice(_CHANGES)(data, rng)
    return data


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    first, last = sorted(rng.randint(0, len(data)) for _ in range(2))
    return data[:first] if rng.random() < 0.5 else data[:first] + data[last:]


def _put(data: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + _word(rng) + data[at:]


def _line(data: bytes, rng: random.Random) -> bytes:
    """A line goes, comes twice, or moves."""
    lines = data.split(b"\n")
    line = lines.pop(rng.randrange(len(lines)))
    for _ in range(rng.randint(0, 2)):
        lines.insert(rng.randint(0, len(lines)), line)
    return b"\n".join(lines)


def _value(data: bytes, rng: random.Random) -> bytes:
    """What stands behind a colon or a comma becomes another word."""
    places = [i + 1 for i, byte in enumerate(data) if byte in b":,"]
    if not places:
        return _put(data, rng)
    at = rng.choice(places)
    ends = [end for end in (data.find(mark, at) for mark in (b",", b"\n", b"  #", b"}", b"]")) if end >= 0]
    return data[:at] + b" " + _word(rng) + data[min(ends, default=len(data)) :]


def _word(rng: random.Random) -> bytes:
    return rng.choice(WORDS).encode("utf-8", "surrogatepass")


_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _cut, _put, _line, _value, _value)


def mutations(data: bytes, name: str, few: int) -> Iterator[bytes]:
    """``few`` mutations, or FUZZ_ROUNDS of them; ``name`` is the fuzzer's, for its random numbers."""
    rng = dice(name)
    for _ in range(rounds(few)):
        yield mutated(data, rng)


def outcome(read: Callable[[], Any]) -> str | None:
    """None where ``read`` succeeds, else the one line of its UserError. Anything else that it raises is a failure, and
    so is a message of several lines."""
    try:
        read()
    except UserError as error:
        text = str(error)
        assert text and "\n" not in text, repr(text[:3000])
        return text
    return None
