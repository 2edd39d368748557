"""The published tables: figures as they are printed, the run of ours behind each row, and how ours stand beside them.

A table is one file in `tables/`, which the package finds. Data alone, which the configuration and the report read;
`rtdmd.experiments` makes parameters and jobs of the runs.
"""

from __future__ import annotations

from rtdmd.common.discovery import discover
from rtdmd.common.errors import UserError
from rtdmd.common.parsing import did_you_mean
from rtdmd.published.table import Run, Table

TABLES: dict[str, Table] = discover("rtdmd.published.tables", "TABLE", Table)
"""By name."""


def _all_runs() -> dict[str, Run]:
    runs: dict[str, Run] = {}
    for table, found in TABLES.items():
        for name, run in found.runs().items():
            if runs.setdefault(name, run) != run:
                raise UserError(f"rtdmd/published/tables/{table}.py: run {name} differs from another table's")
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
