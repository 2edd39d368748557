"""`rtdmd bench`: how much a training update costs beyond its models' passes.

    rtdmd bench                      ./params.yaml, both training stages
    rtdmd bench --repeats 10         more updates, steadier figures
    rtdmd bench --processes 1 2 4    what it costs to share an update among so many processes, on this machine's CPU

Reads params.yaml, the teacher, the rewards and results/prepare_prompts; writes nothing. The ratio is that of processor
times; the clock's times are printed beside them. Then the images that pass the transformer in an update, forward and
backward: as many as the algorithm needs (means of what is drawn), and as many as the update made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtdmd.common.checkout import tool
from rtdmd.common.columns import table
from rtdmd.common.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is timed, and how often."""
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file (default: %(default)s)")
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        help="measure an update shared among this many processes (time, communication, bytes sent) instead of passes",
    )
    parser.add_argument("--repeats", type=int, default=3, help="epochs, and rounds of stage one (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Print a row per stage. UserError where the prompts or a model are not there."""
    if arguments.repeats < 1:
        raise UserError(f"--repeats: {arguments.repeats}; allowed: 1 or more")
    from rtdmd.config import load_params

    if arguments.processes is not None:
        if min(arguments.processes) < 1:
            raise UserError(f"--processes: {min(arguments.processes)}; allowed: 1 or more")
        scaling = tool("scaling", "bench")
        shared = scaling.scaling(load_params(arguments.params), arguments.processes, arguments.repeats)
        print(table([scaling.HEAD, *shared]))
        return
    bench = tool("bench", "bench").bench
    counts = [["passes of the transformer, an update", "forward: needed", "made", "backward: needed", "made"]]
    rows = [["", "updates", "update [s]", "passes [s]", "ratio", "clock: update [s]", "passes [s]"]]
    for stage, times in bench(load_params(arguments.params), arguments.repeats):
        seconds = [f"{value / times.updates:.3f}" for value in (*times.update, *times.passes)]
        rows.append([stage, str(times.updates), seconds[0], seconds[2], f"{times.ratio:.3f}", seconds[1], seconds[3]])
        images = (times.needed.forward, times.made.forward, times.needed.backward, times.made.backward)
        counts.append([stage, *map("{:.0f}".format, images)])
    print(table(rows))
    print()
    print(table(counts))
