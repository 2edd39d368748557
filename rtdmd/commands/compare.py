"""`rtdmd compare train_rtdmd train_acdmd` (or FILE.csv:model on either side): how much better is the first, and how
sure is that?

Differences are paired over the same (prompt, image index), with 95 % intervals (see rtdmd/evaluate/intervals.py), for
every suite and score that both files hold, overall and per tag.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtdmd.common.errors import UserError
from rtdmd.evaluate.pairs import difference_table, paired_difference
from rtdmd.evaluate.tables import Scores, read_suites

RESULTS = "results/evaluate/scores.csv"


def run(arguments: argparse.Namespace) -> None:
    """Print the tables of ``arguments.first`` - ``arguments.second``. Raises UserError when the images differ."""
    print(compare(arguments.first, arguments.second))


def compare(first: str, second: str) -> str:
    """A table a suite, as text. UserError where the two have no suite in common."""
    one = _side(first)
    other = _side(second)
    shared = [suite for suite in one if suite in other]
    if not shared:
        raise UserError(f"no suite in common: {first} has {', '.join(one)}, {second} has {', '.join(other)}")
    tables = []
    for suite in shared:
        difference = paired_difference(one[suite], other[suite])
        table = difference_table(difference, list(difference.columns))
        tables.append(f"{first} - {second}, {suite}\n{table}")
    return "\n\n".join(tables)


def _side(text: str) -> dict[str, Scores]:
    """Scores by suite of ``FILE.csv:model``, or of ``model`` in this folder's own results."""
    path, _, model = text.rpartition(":")
    return read_suites(Path(path or RESULTS), model)
