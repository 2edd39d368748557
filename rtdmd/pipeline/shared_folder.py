"""A folder that several people use: what a run writes has to be writable for whoever runs it next."""

from __future__ import annotations

import os
from pathlib import Path

from rtdmd.common.errors import UserError

WRITTEN = (
    ".",
    "dvc.lock",
    ".dvc",
    ".dvc/tmp",
    ".dvc/tmp/*",
    ".dvc/cache",
    ".dvc/cache/files/md5",
    ".snakemake",
    ".snakemake/*",
    ".rtdmd",
    ".rtdmd/*",
    ".rtdmd/locks/*",
    "results",
    "results/*",
    "logs",
    "logs/*",
    "benchmarks",
)
REMEDY = "whoever made it runs `chmod -R g+rwX .` here, and all of you work with `umask 002`"


def refuse_unwritable(root: Path) -> None:
    """UserError for the first path under `root` that a run would write and this user may not."""
    for pattern in WRITTEN:
        for path in sorted(root.glob(pattern)) if pattern != "." else [root]:
            if not os.access(path, os.W_OK, effective_ids=True):
                raise UserError(f"{path}: this user may not write it; in a folder that several people share, {REMEDY}")
