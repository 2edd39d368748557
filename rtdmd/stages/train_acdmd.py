"""`rtdmd train_acdmd`: stage one, Ambient-Consistent Distribution Matching Distillation (`rtdmd.train.acdmd`).

Reads the teacher, the text cache and the training prompts; writes the averaged generator, the fake score and curves.
"""

from __future__ import annotations

from pathlib import Path

from rtdmd.train import acdmd
from rtdmd.train.distributed.ranks import open_together


def run(root: Path = Path(".")) -> None:
    """Run the stage in ``root``."""
    with open_together(acdmd.NAME, root) as (stage, ranks):
        acdmd.train(stage, ranks)
