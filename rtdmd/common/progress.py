"""Progress on standard error: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines of a log file
LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress(items: Iterable[Any] | None = None, **shown: Any) -> Any:
    """tqdm over ``items``; ``shown``: its own arguments. Where standard error is a file or a pipe it writes whole lines
    instead of one that is drawn over and over."""
    if sys.stderr.isatty():
        return tqdm(items, mininterval=1, **shown)
    return tqdm(items, file=Lines(sys.stderr), bar_format=LINE, mininterval=EVERY, miniters=1, **shown)


class Lines:
    """What tqdm draws on, as lines: it goes back to a line's start before each drawing, and ends the last one."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        """One drawing, its padding left out."""
        if drawn := text.strip():
            self.stream.write(f"{drawn}\n")

    def flush(self) -> None:
        """The stream's."""
        self.stream.flush()
