"""The runs of the tables in DVC's queue: the commands that put them there, and the one that shows their figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rtdmd.experiments import find_table
from rtdmd.methods._card import flat
from rtdmd.published.table import Column, Run


def queue_lines(names: Sequence[str]) -> Iterator[str]:
    """Shell commands: each run of these tables once, into the queue of DVC, whose cache holds what they share; then
    what runs them, and what shows their figures."""
    tables = [find_table(name) for name in names]
    runs = {run.name: run for table in tables for run in table.runs().values()}
    for name in runs:
        yield f"rtdmd experiments --write {name} && dvc exp run --queue --name {name} evaluate"
    yield "git checkout params.yaml dvc.yaml"
    yield "dvc exp run --run-all"
    yield show_line([column for table in tables for column in table.columns], list(runs.values()))


def show_line(columns: Sequence[Column], runs: Sequence[Run]) -> str:
    """`dvc exp show` with the tables' own figures of every model, over all tags, and the settings in which the runs
    differ from their presets: metrics.json has a thousand figures, which make a table that nobody can read."""
    settings = {key for run in runs for key in flat(run.changes)}
    settings |= {"train_acdmd.recipe", "train_rtdmd.recipe"} if any(run.method for run in runs) else set()
    figures = dict.fromkeys(f"suites.{one.suite}.*.{one.score}.mean" for one in columns if one.tag is None)
    kept = [re.escape(key).replace(r"\*", "[^.]+") for key in ("Experiment", *sorted(settings), *figures)]
    return f"dvc exp show --hide-workspace --drop '.*' --keep '({'|'.join(kept)})$'"
