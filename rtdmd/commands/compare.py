"""`rtdmd compare train_rtdmd train_acdmd` (or FILE.csv:model on either side): how much better is the first, and how
sure is that?

Differences are paired over the same (prompt, image index), with 95 % intervals (see rtdmd/evaluate/intervals.py), for
every score that both files hold, overall and per tag.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtdmd.evaluate.pairs import difference_table, paired_difference
from rtdmd.evaluate.tables import Scores, read_scores

RESULTS = "results/evaluate/scores.csv"


def run(arguments: argparse.Namespace) -> None:
    """Print the table of ``arguments.first`` - ``arguments.second``. Raises UserError when the images differ."""
    print(compare(arguments.first, arguments.second))


def compare(first: str, second: str) -> str:
    """The table as text."""
    difference = paired_difference(_side(first), _side(second))
    return f"{first} - {second}\n" + difference_table(difference, list(difference.columns))


def _side(text: str) -> Scores:
    """Scores of ``FILE.csv:model``, or of ``model`` in this folder's own results."""
    path, _, model = text.rpartition(":")
    return read_scores(Path(path or RESULTS), model)
