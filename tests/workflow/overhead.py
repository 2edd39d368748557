"""What the engines cost: `python -m tests.workflow.overhead FOLDER [REPEATS]`, in a finished checkout, prints the table
of docs/engines.md.

A run with nothing to do is an engine's start, its look at all files, and its end. What it adds to a stage is measured
on stages that are answered from the cache, all seven in turn: the engine starts the job, finds the run in the cache and
puts its outputs in place; what exceeds a run with nothing to do is divided by seven. Both are given as time on the
clock and on the processor: the second does not count the neighbours.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.workflow.checkout import environment

STAGES = 7


def timed(root: Path, command: list[str], before: Callable[[Path], None]) -> tuple[float, float]:
    """Seconds on the clock and on the processor of one run."""
    before(root)
    was, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=root, env=environment(root), check=True, capture_output=True)
    wall, now = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, now.ru_utime + now.ru_stime - was.ru_utime - was.ru_stime


def best(root: Path, command: list[str], before: Callable[[Path], None], repeats: int) -> tuple[float, float]:
    """The smallest of some runs, each figure on its own: what disturbs only adds."""
    runs = [timed(root, command, before) for _ in range(repeats)]
    return min(wall for wall, _ in runs), min(cpu for _, cpu in runs)


def _without_results(root: Path) -> None:
    shutil.rmtree(root / "results")


def main(root: Path, repeats: int) -> None:
    """Print the table."""
    commands = {"snakemake": ["snakemake", "--cores", "1"], "dvc": ["dvc", "repro"]}
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| engine | nothing to do: clock | processor | each stage: clock | processor |\n|---|---|---|---|---|")
    for engine, command in commands.items():
        idle = best(root, command, lambda _: None, repeats)
        full = best(root, command, _without_results, repeats)
        cells = [idle[0], idle[1], *((a - b) / STAGES for a, b in zip(full, idle, strict=True))]
        print(f"| {engine} | " + " | ".join(f"{seconds:.1f} s" for seconds in cells) + " |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 3)
