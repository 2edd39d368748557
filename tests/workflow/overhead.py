"""What the engines cost: `python -m tests.workflow.overhead FOLDER`, in a finished checkout, prints the table of
docs/evidence/costs.md; `--engine slurm` alone its row of Slurm, on a Slurm of one node that it starts.

A run with nothing to do is an engine's start, its look at all files, and its end. What it adds to a stage is measured
on stages that are answered from the cache, all seven in turn: the engine starts the job, finds the run in the cache and
puts its outputs in place; what exceeds a run with nothing to do is divided by seven. Both are given as time on the
clock and on the processor: the second does not count the neighbours, nor what Slurm's daemons start.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from tests.workflow.checkout import environment
from tests.workflow.slurm_cluster import Cluster

STAGES = 7
ENGINES = {
    "snakemake": "snakemake --cores 1",
    "dvc": "dvc repro",
    "slurm": "snakemake --cores all --profile slurm",
}


def timed(root: Path, command: str, before: Callable[[Path], None]) -> tuple[float, float]:
    """Seconds on the clock and on the processor of one run."""
    before(root)
    was, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command.split(), cwd=root, env=environment(root), check=True, capture_output=True)
    wall, now = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, now.ru_utime + now.ru_stime - was.ru_utime - was.ru_stime


def best(root: Path, command: str, before: Callable[[Path], None], repeats: int) -> tuple[float, float]:
    """The smallest of some runs, each figure on its own: what disturbs only adds."""
    runs = [timed(root, command, before) for _ in range(repeats)]
    return min(wall for wall, _ in runs), min(cpu for _, cpu in runs)


def _without_results(root: Path) -> None:
    shutil.rmtree(root / "results")


def row(engine: str, root: Path, repeats: int) -> str:
    """The table's row of an engine."""
    with ExitStack() as stack:
        if engine == "slurm":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            cluster = stack.enter_context(Cluster(Path(folder) / "slurm"))
            stack.enter_context(patch.dict(os.environ, cluster.env))
        idle = best(root, ENGINES[engine], lambda _: None, repeats)
        full = best(root, ENGINES[engine], _without_results, repeats)
    cells = [idle[0], idle[1], *((a - b) / STAGES for a, b in zip(full, idle, strict=True))]
    return f"| `{ENGINES[engine]}` | " + " | ".join(f"{seconds:.1f} s" for seconds in cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="what the engines cost")
    parser.add_argument("folder", type=Path, help="a finished checkout")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="(default: snakemake and dvc)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| engine | nothing to do: clock | processor | each stage: clock | processor |\n|---|---|---|---|---|")
    for engine in options.engine or ("snakemake", "dvc"):
        print(row(engine, options.folder.resolve(), options.repeats), flush=True)


if __name__ == "__main__":
    main()
