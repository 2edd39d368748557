"""A stand-in: what a rehearsal puts in the place of a repository of the Hub, or of a file that the user provides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple


class StandIn(NamedTuple):
    """The real classes at a tiny size in the published file layout, random weights in them.

    repo: `owner/name` on the Hub, or for a file or folder of the user's its path from the root of the checkout.
    revision: the commit that the params ask for; None for the user's own.
    gated: whether the Hub shows it only to who has accepted its terms.
    write: fills the empty folder that it is given; for ``kind`` "file" it writes the file of that path.
    departs: what stays unproved without the real files, one sentence for the closing table.
    """

    repo: str
    revision: str | None
    kind: Literal["model", "dataset", "file"]
    gated: bool
    write: Callable[[Path], None]
    departs: str
