"""`rtdmd sweep run gdmd 0`: one run of the comparison, in a folder of its own; `rtdmd sweep gather`: table and page.

`snakemake sweep` runs all of workflow/sweep.yaml this way; by hand the base run of a seed comes first
(`rtdmd sweep run base 0`). A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtdmd.common.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and of which run."""
    parser.add_argument("what", choices=("run", "gather"))
    parser.add_argument("name", nargs="?", help="with run: teacher, base, or a name of `rtdmd methods`")
    parser.add_argument("seed", nargs="?", type=int, help="with run: one of the plan's seeds")
    parser.add_argument("--plan", type=Path, default=Path("workflow/sweep.yaml"), help="default: %(default)s")


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Run one run, or gather what is there; prints the path of what was written."""
    from rtdmd.config import load_params
    from rtdmd.study.plan import load_plan

    plan = load_plan(root / arguments.plan)
    base = load_params(root / "params.yaml")
    if arguments.what == "gather":
        if arguments.name is not None:
            raise UserError(f"sweep gather takes no name, got {arguments.name}")
        from rtdmd.study.page import write_comparison

        print(write_comparison(root, plan, base))
        return
    if arguments.name not in plan.runs() or arguments.seed not in plan.seeds:
        asked = " ".join(str(word) for word in (arguments.name, arguments.seed) if word is not None) or "without a name"
        raise UserError(
            f"sweep run {asked}: not in {arguments.plan}; its runs are"
            f" {', '.join(plan.runs())}, its seeds {', '.join(map(str, plan.seeds))}"
        )
    from rtdmd.study.run import run as run_one

    print(run_one(root, base, plan, arguments.name, arguments.seed))
