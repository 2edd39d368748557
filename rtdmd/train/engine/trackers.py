"""Trackers, for people who watch a run: RTDMD_TRACKERS=wandb,tensorboard shows its journal and its image grids there
too.

An environment variable and no key of params.yaml: who watches changes no result, so it makes none stale. They start
before the models are loaded: a login that is missing ends a run at once. The journal stays what a run is known by: at
each start a tracker is told what it lacks of the journal as it was resumed, so no step is there twice, and a tracker
that is asked for later has the steps before too. Nothing is imported unless asked for, accelerate's trackers
(`tracker_kinds`) included.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.common.errors import UserError

if TYPE_CHECKING:
    from rtdmd.train.distributed.ranks import Ranks
    from rtdmd.train.engine.tracker_kinds import Tracker

VARIABLE = "RTDMD_TRACKERS"
NAMES = ("dvclive", "tensorboard", "trackio", "wandb")
"""Also the names of their packages."""


def requested_trackers() -> list[str]:
    """The trackers that RTDMD_TRACKERS names. UserError for one that is not offered or not installed."""
    names = list(filter(None, os.environ.get(VARIABLE, "").replace(",", " ").split()))
    for name in names:
        if name not in NAMES:
            raise UserError(f"{VARIABLE}: {name}; allowed: {', '.join(NAMES)}, several with commas between, or none")
        if find_spec(name) is None:
            raise UserError(f"{VARIABLE}: {name} is not installed; `make trackers` installs it, or leave it out")
    return list(dict.fromkeys(names))


def image_log_path(folder: Path, number: int) -> Path:
    """Where a run's image grid after step ``number`` is, if one was due."""
    return folder / f"image-log-{number:08d}.png"


@dataclass
class RunningTracker:
    """A started tracker, told step after step. Where it fails in the middle, its share of the showing ends in one line,
    and the training goes on."""

    tracker: Tracker
    folder: Path
    first: int  # the first step that it lacks
    number: int = 0  # the last step told
    lost: bool = False

    def step(self, number: int, values: dict[str, float]) -> None:
        """Tell step ``number``, and before it the image grid of the step before, which is drawn after that one's
        line."""
        if number >= self.first:
            self._image_log()
            self._call(lambda: self.tracker.log(values, step=number))
            self.number = number

    def finish(self) -> None:
        """Tell the last image grid, and write or send what is left."""
        self._image_log()
        self._call(self.tracker.finish)

    def _image_log(self) -> None:
        path = image_log_path(self.folder, self.number)
        if self.number and path.is_file():
            self._call(lambda: self.tracker.show(path, self.number))

    def _call(self, act: Callable[[], Any]) -> None:
        if self.lost:
            return
        try:
            act()
        except self.tracker.faults as error:
            self.lost = True
            with suppress(BrokenPipeError):
                message = f"{self.tracker.name} is lost after step {self.number}: {one_line(error)}"
                print(f"{VARIABLE}: {message}; the training goes on without it", file=sys.stderr)


def one_line(error: Exception) -> str:
    """What an error says, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def start(name: str, folder: Path, params: Mapping[str, Any]) -> RunningTracker:
    """The tracker ``name`` of the run in ``folder``, started and told the run's ``params``. UserError where that cannot
    be."""
    from rtdmd.train.engine.tracker_kinds import KINDS, flat

    tracker = KINDS[name](folder)
    try:
        tracker.start()
        tracker.store_init_configuration(flat(params))
    except tracker.faults as error:
        raise UserError(f"{VARIABLE}: {name} does not start ({one_line(error)}); {tracker.remedy}") from error
    return RunningTracker(tracker, folder, tracker.first)


@contextmanager
def start_trackers(folder: Path, params: Mapping[str, Any], ranks: Ranks) -> Iterator[list[RunningTracker]]:
    """The wanted trackers of the run in ``folder``, started by the first process and told the run's ``params`` (a tree
    of them by section); finished at the end. UserError in every process for one that is unknown, not installed or does
    not start."""
    running: list[RunningTracker] = []
    with ExitStack() as stack:
        with ranks.sync_errors():
            names = requested_trackers() if ranks.main else []
            if names:
                from rtdmd.train.engine.tracker_kinds import accelerate_state

                stack.enter_context(accelerate_state())
            for name in names:
                running.append(start(name, folder, params))
                stack.callback(running[-1].finish)
        yield running
