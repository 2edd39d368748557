"""`rtdmd experiments`: the published tables, and the runs of ours behind their rows.

    rtdmd experiments                      all tables: published figures, runs, what cannot be stated
    rtdmd experiments table_2              one of them
    rtdmd experiments --check table_2      published | ours ± interval | difference; without a name, every table
    rtdmd experiments --cost table_2       GPU hours of its runs by stage, by `rtdmd plan`
    rtdmd experiments --queue table_2      the commands that put its runs into DVC's queue and show them

`snakemake experiment_table_2` runs a table (docs/results.md). --check ends with exit code 1 where a cell is off or
not measured yet.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtdmd.common.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which table or run."""
    parser.add_argument("table", nargs="?", help="one table (default: all)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--check", action="store_true", help="compare published figures with ours; exit code 1: not all agree"
    )
    what.add_argument("--cost", action="store_true", help="GPU hours of the runs by stage")
    what.add_argument("--queue", action="store_true", help="print the commands that put the runs into DVC's queue")
    what.add_argument("--gather", action="store_true", help="write results/experiments/<table>")
    what.add_argument("--write", metavar="RUN", help="replace params.yaml and dvc.yaml here by those of a run")
    what.add_argument("--run", nargs=2, metavar=("RUN", "STAGE"), help="one stage of a run, in the run's folder")


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Do what is asked. UserError for an unknown table, run or stage; RtdmdError where --check finds a difference."""
    from rtdmd.experiments import TABLES, find_table
    from rtdmd.experiments.text import check_text, list_text, table_text

    names = list(TABLES) if arguments.table is None else [arguments.table]
    for name in names:
        find_table(name)
    if arguments.run is not None or arguments.write is not None:
        if arguments.table is not None:
            raise UserError(f"experiments: --run and --write take no table, got {arguments.table}")
        print(_run(root, *arguments.run) if arguments.run is not None else _write(root, arguments.write))
        return
    if not (arguments.check or arguments.cost or arguments.queue or arguments.gather):
        lines = list_text() if arguments.table is None else table_text(arguments.table, find_table(arguments.table))
        print("\n".join(lines))
        return
    if arguments.queue:
        from rtdmd.experiments.queue import queue_lines

        print("\n".join(queue_lines(names)))
        return
    from rtdmd.experiments.jobs import Jobs

    jobs = Jobs.of(root)
    if arguments.check:
        for line in check_text(names, jobs):
            print(line)
    elif arguments.cost:
        from rtdmd.experiments.cost import cost_text

        for line in cost_text(names, jobs):
            print(line, flush=True)
    else:
        from rtdmd.experiments.page import write_table

        for name in names:
            print(write_table(name, jobs))


def _write(root: Path, name: str) -> str:
    """params.yaml and dvc.yaml of a run, from the commit. UserError where they have changes that are not committed."""
    from rtdmd.config.render import params_text
    from rtdmd.experiments import find_run
    from rtdmd.experiments.jobs import pipeline_of
    from rtdmd.experiments.settings import load_local, run_params
    from rtdmd.experiments.written import overwrite

    params = run_params(find_run(name), load_local(root))
    text = params_text(params, f"rtdmd experiments --write {name}")
    overwrite(root, {"params.yaml": text, "dvc.yaml": pipeline_of(root, params)})
    return f"params.yaml and dvc.yaml are those of {name}; `git checkout params.yaml dvc.yaml` brings yours back"


def _run(root: Path, name: str, stage: str) -> Path:
    """One job of the workflow."""
    from rtdmd.common.signals import caught
    from rtdmd.experiments import find_run
    from rtdmd.experiments.jobs import Jobs, stages_of

    find_run(name)
    jobs = Jobs.of(root)
    allowed = stages_of(jobs.params[name])
    if stage not in allowed:
        raise UserError(f"experiments --run {name} {stage}: no stage of it; allowed: {', '.join(allowed)}")
    with caught():
        return jobs.run(name, stage)
