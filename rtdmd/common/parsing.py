"""Reading text that others wrote: whatever is wrong with it becomes one line that names the file and the place."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from rtdmd.common.errors import UserError


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class where it has none (``EOFError()``)."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(value: Any, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest that is allowed, nothing where none is near."""
    near = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def read_bytes(path: Path, remedy: str) -> bytes:
    """The bytes of a regular file. UserError (with the ``remedy``) where it is missing, cannot be read, or is a pipe
    or a device, which might never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: not a regular file; {remedy}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; {remedy}") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({why}); {remedy}") from error


def read_text(path: Path, remedy: str) -> str:
    """The text of a regular UTF-8 file. UserError as for `read_bytes`, and with the line that is not UTF-8."""
    data = read_bytes(path, remedy)
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 (byte {error.start + 1} of the file); {remedy}") from error


class _Refused(ValueError):
    """JSON that Python would read, and that we do not take."""


def json_value(text: str) -> Any:
    """What JSON text says. ValueError, in one line with the place, where it is none, has a number that is not finite
    or has thousands of digits, or is nested deeper than can be read."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except _Refused:
        raise
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise _Refused(f"not JSON ({error.msg}, {line}column {error.colno})") from error
    except RecursionError as error:
        raise _Refused("not JSON that can be read (nested too deep)") from error
    except ValueError as error:  # Python's own limit on the digits of an integer
        raise _Refused("not JSON that can be read (an integer of thousands of digits)") from error


def parse_json(text: str | bytes, name: str, remedy: str = "make the file again") -> dict[str, Any]:
    """A JSON object; UserError that names the file (``name``), the place and the ``remedy`` otherwise."""
    try:
        value = json_value(text.decode("utf-8") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 (byte {error.start + 1}); {remedy}") from error
    except ValueError as error:
        raise UserError(f"{name}: {error}; {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{name}: a JSON object is expected, got {type(value).__name__}; {remedy}")
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise _Refused(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _Refused(f"{text[:40]} is beyond the largest number")
    return value


def read_table(path: Path, remedy: str) -> tuple[list[str], list[dict[str, str]]]:
    """(names of the columns, rows by name) of a .csv that this package writes. UserError with the line and the
    ``remedy`` where it is none, or a row has another number of columns."""
    reader = csv.reader(io.StringIO(read_text(path, remedy), newline=""), strict=True)
    rows = []
    try:
        names = next(reader, [])
        for row in reader:
            if len(row) != len(names):
                raise csv.Error(f"{len(names)} columns are expected, got {len(row)}")
            rows.append(dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({first_line(error)}); {remedy}") from error
    if not names or len(set(names)) != len(names):
        raise UserError(f"{path}:1: the columns' names are expected, each once; {remedy}")
    return names, rows
