"""`rtdmd train_rtdmd`: stage two, reward-tilted distribution matching (`rtdmd.train.rtdmd`).

Reads stage one's generator and fake score, the teacher, the text cache and the rewards; writes the averaged stage-two
adapter, which sits on top of stage one's, the curves, and what the scorers were.
"""

from __future__ import annotations

from pathlib import Path

from rtdmd.train import rtdmd
from rtdmd.train.distributed.ranks import open_together


def run(root: Path = Path(".")) -> None:
    """Run the stage in ``root``."""
    with open_together(rtdmd.NAME, root) as (stage, ranks):
        rtdmd.train(stage, ranks)
