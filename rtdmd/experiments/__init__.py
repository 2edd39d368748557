"""The published experiments by name: parameters and jobs of the runs behind the published tables, and their pages.

`rtdmd experiments` lists the tables (`rtdmd.published`); docs/results.md has the rest.
"""

from rtdmd.published import RUNS, TABLES, find_run, find_table

__all__ = ["RUNS", "TABLES", "find_run", "find_table"]
