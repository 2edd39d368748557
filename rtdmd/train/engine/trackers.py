"""Trackers, for people who watch a run: RTDMD_TRACKERS=dvclive,tensorboard shows its journal there too.

An environment variable and no key of params.yaml: who watches changes no result, so it makes none stale. The journal
stays what a run is known by. At each start a tracker's folder is made anew from the journal as it was resumed, so no
step is there twice, and a tracker that is asked for later has the steps before too. Nothing is imported unless asked
for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rtdmd.common.errors import UserError
from rtdmd.common.files import remove

if TYPE_CHECKING:
    from rtdmd.train.engine.journal import Journal

VARIABLE = "RTDMD_TRACKERS"
Tell = Callable[[Mapping[str, float]], None]


class Tracker(Protocol):
    """What shows a run."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Show a step's values."""
        ...

    def finish(self) -> None:
        """Write what is not yet written."""
        ...


class DvcLive:
    """DVC's tracker, told to commit nothing, save no experiment and write no dvc.yaml. Its folder is what `dvc plots
    show` and `dvc metrics show` read."""

    def __init__(self, folder: Path) -> None:
        from dvclive import Live

        self.live = Live(dir=str(folder), save_dvc_exp=False, dvcyaml=None)

    def log(self, values: dict[str, float], step: int) -> None:
        """A row in each value's file. No `Live.next_step`, which reads all files again at every step; and no slash in
        a name, since its summary cannot hold both `a` and `a/b`."""
        self.live.step = step
        for name, value in values.items():
            self.live.log_metric(name.replace("/", "."), value)
        self.live.make_summary()

    def finish(self) -> None:
        """See `Tracker`."""
        self.live.end()


class TensorBoard:
    """TensorBoard's files, written by torch (accelerate's tracker works under accelerate's own state only)."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def log(self, values: dict[str, float], step: int) -> None:
        """A point in each value's curve."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """See `Tracker`."""
        self.writer.close()


KINDS: dict[str, Callable[[Path], Tracker]] = {"dvclive": DvcLive, "tensorboard": TensorBoard}
"""By name, which is also that of the package."""


def wanted() -> list[str]:
    """The trackers that RTDMD_TRACKERS names. UserError for one that does not exist or is not installed."""
    names = list(filter(None, os.environ.get(VARIABLE, "").replace(",", " ").split()))
    for name in names:
        if name not in KINDS:
            raise UserError(f"{VARIABLE}: {name}; allowed: {', '.join(KINDS)}, several with commas between, or none")
        if find_spec(name) is None:
            raise UserError(f"{VARIABLE}: {name} is not installed; `.venv/bin/python -m pip install {name}`")
    return list(dict.fromkeys(names))


@contextmanager
def watching(journal: Journal) -> Iterator[Tell]:
    """Open the wanted trackers beside the journal, each in a folder of its name, with the journal's steps in it; tell
    them each further step."""
    with ExitStack() as stack:
        trackers = []
        for name in wanted():
            remove(journal.path.parent / name)  # a link too: the tracker would write to where it points
            trackers.append(KINDS[name](journal.path.parent / name))
            stack.callback(trackers[-1].finish)

        def tell(step: Mapping[str, float]) -> None:
            values = {name: value for name, value in step.items() if name != journal.unit}
            for tracker in trackers:
                tracker.log(values, step=int(step[journal.unit]))

        for step in journal.steps() if trackers else ():
            tell(step)
        yield tell
