"""`rtdmd trace results/publish` (or any stage's folder, a published folder, weights, or a repository on the Hub): from
which inputs, settings and code was it made, and are these what is here?

Prints the lineage from the result back to its first causes. Exit code 0: all is as recorded; 1: something differs, and
the first cause of it is named; 2: there is nothing to trace.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtdmd.common.errors import RtdmdError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to trace."""
    parser.add_argument(
        "target", help="folder, weights file, or Hub repository `owner/name` (also owner/name@revision)"
    )


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Print the lineage of ``arguments.target``; RtdmdError that names the first difference, if there is one."""
    from rtdmd.publish.trace import Traced, table, trace_path

    target: str = arguments.target
    traced: Traced
    in_a_folder_here = Path(target).parent.is_dir() and "@" not in target
    if in_a_folder_here or Path(target).exists():
        traced = trace_path(Path(target), root)
    else:
        from rtdmd.publish.trace_hub import trace_hub

        traced = trace_hub(target)
    found = traced.compare(root)
    print(table(traced, found))
    if found:
        more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
        raise RtdmdError(f"not as recorded; first: {found[0]}{more}")
    print("\nall is here as recorded")
