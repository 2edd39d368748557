"""The published experiments by name: tables, the runs of ours behind their rows, and published figures beside ours.

A table is one file in `tables/`, which the package finds. `rtdmd experiments` lists them; docs/experiments.md has the
rest.
"""

from __future__ import annotations

from typing import get_args

from rtdmd.common.discovery import discover
from rtdmd.common.errors import UserError
from rtdmd.common.parsing import did_you_mean
from rtdmd.config.results import ModelName
from rtdmd.experiments._table import Run, Table

TABLES: dict[str, Table] = discover("rtdmd.experiments.tables", "TABLE", Table)
"""By name."""


def _all_runs() -> dict[str, Run]:
    runs: dict[str, Run] = {}
    for table, found in TABLES.items():
        for name, run in found.runs().items():
            if runs.setdefault(name, run) != run:
                raise UserError(f"rtdmd/experiments/tables/{table}.py: run {name} differs from another table's")
    return dict(sorted(runs.items(), key=lambda item: item[1].changed))


RUNS: dict[str, Run] = _all_runs()
"""By name, those that are their preset as it is first; tables share runs."""


def find_table(name: str) -> Table:
    """A table by name; UserError with the names otherwise."""
    if name not in TABLES:
        raise UserError(f"table {name!r} is unknown; allowed: {', '.join(TABLES)}")
    return TABLES[name]


def find_run(name: str) -> Run:
    """A run by name; UserError with the names otherwise, the nearest first."""
    if name not in RUNS:
        raise UserError(f"experiment {name!r} is unknown; allowed: {', '.join(RUNS)}{did_you_mean(name, RUNS)}")
    return RUNS[name]


def models_of(run: Run) -> tuple[str, ...]:
    """The models of a run that any table's row asks for, in the order of evaluation."""
    asked = {row.model for table in TABLES.values() for row in table.rows if row.run == run}
    return tuple(name for name in get_args(ModelName) if name in asked)
