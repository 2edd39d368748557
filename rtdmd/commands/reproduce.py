"""`rtdmd reproduce` (`make reproduce`): run the committed pipeline again from scratch and compare every output's hash.

Exit code 0: every output has the bytes that dvc.lock records. Exit code 1: some have not, and the table says how far
apart they are. With --other-machine, code 0 asks only that the scores agree within their intervals: the bytes are
promised per type of machine (CPU capability, build of torch, threads), not across types.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.escape import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to run, where, and what to ask of it."""
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="stages to run, with those they need (default: all)")
    parser.add_argument(
        "--into", type=Path, metavar="DIR", help="new folder to keep the run in (default: a temporary one)"
    )
    parser.add_argument(
        "--other-machine", action="store_true", help="accept other bytes if the scores agree within their intervals"
    )


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Print the table; RtdmdError that says what does not agree."""
    if arguments.into is None:
        with tempfile.TemporaryDirectory(prefix="rtdmd-reproduce-", ignore_cleanup_errors=True) as folder:
            _reproduce(arguments, root, Path(folder) / "clone")
    elif arguments.into.exists():
        raise UserError(f"--into {arguments.into}: exists; name a new folder")
    else:
        try:
            _reproduce(arguments, root, arguments.into)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(f"`rm -r {arguments.into}`, then the same command starts anew") from stop


def _reproduce(arguments: argparse.Namespace, root: Path, folder: Path) -> None:
    from rtdmd.pipeline.provenance import git_state, hardware_class, package_versions
    from rtdmd.pipeline.reproduce import reproduce, table

    state = git_state(root)
    machine = hardware_class()
    versions = package_versions()
    print(f"commit {state.commit}, on {machine['processor']} ({machine['machine']}), torch {versions['torch']}")
    if state.changed:
        print(f"not in the commit, so not run: {', '.join(map(printable, state.changed))}")
    rows = reproduce(root, folder, arguments.stages)
    print(table(rows))
    other = [row for row in rows if not row.equal]
    print(f"{len(rows) - len(other)} of {len(rows)} outputs have the recorded bytes")
    outside = [row for row in other if row.within is False or not row.words]
    if outside:
        raise RtdmdError(f"{outside[0].path}: not reproduced ({outside[0].words or 'not written'})")
    if other and not arguments.other_machine:
        raise RtdmdError(
            f"{other[0].path} has other bytes; expected on another type of machine (then: --other-machine), a fault on"
            " the same"
        )
