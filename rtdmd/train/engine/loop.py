"""The resumable loop over steps that both stages share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rtdmd.common import signals
from rtdmd.common.errors import NonFiniteError, RtdmdError
from rtdmd.common.progress import progress
from rtdmd.common.signals import Stopped
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.engine import checkpoint
from rtdmd.train.engine.journal import Journal
from rtdmd.train.engine.trackers import RunningTracker
from rtdmd.train.learner import Learner


class Stateful(Protocol):
    """What a checkpoint holds: a learner, or anything else that gives its state as tensors and takes it back."""

    def tensors(self, name: str) -> dict[str, dict[str, Tensor]]:
        """Everything that resuming needs, as named tensor groups."""
        ...

    def restore(self, name: str, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse of ``tensors``."""
        ...


LATE = 60  # seconds that a shared file system may take to show a checkpoint to all nodes


@dataclass
class Loop:
    """A resumable loop over steps: restores the newest checkpoint, saves every ``save_every``, keeps the journal.

    A signal to end lets the running step finish, saves, and raises `Stopped`. Of several processes the first one
    writes checkpoints and journal; every one restores.
    """

    folder: Path
    total: int
    save_every: int
    log_every: int
    learners: Mapping[str, Stateful]
    title: str
    unit: str
    ranks: Ranks = field(default_factory=Ranks)
    keep: int = checkpoint.KEEP
    should_stop: Callable[[], bool] = lambda: False  # ends the loop before ``total``
    trackers: Sequence[RunningTracker] = ()
    _bar: Any = None

    def __post_init__(self) -> None:
        self.journal = Journal(self.folder / checkpoint.JOURNAL, self.unit)

    def __iter__(self) -> Iterator[int]:
        """Steps still to do, with a progress bar on standard error."""
        with signals.defer_signals():
            done = first = self._resume()
            self._track()
            stop = None
            self._bar = progress(initial=first, total=self.total, desc=self.title, disable=not self.ranks.main)
            for step in range(first, self.total):
                if self.should_stop():
                    break
                yield step
                # A signal to any process ends all of them after the same step.
                done = step + 1
                stop = next(filter(None, self.ranks.all_gather_object(signals.received())), None)
                if done % self.save_every == 0 or done == self.total or stop or self.should_stop():
                    try:
                        self._save(done)
                    except NonFiniteError as error:
                        raise self.fault(step, error) from error
                self._show(done)
                if stop:
                    break
            with suppress(BrokenPipeError):
                self._bar.close()
            if stop:
                raise Stopped(f"stopped by {stop} after {self.unit} {done} of {self.total}, which is saved")

    def _resume(self) -> int:
        if self.ranks.main:
            checkpoint.remove_partial(self.folder)
        snapshot = self._load()
        if self.ranks.main:
            self.journal.restore(snapshot.journal if snapshot else "")
        if snapshot is not None:
            for name, learner in self.learners.items():
                learner.restore(name, snapshot.tensors)
        step = snapshot.step if snapshot else 0
        self._assert_replicated(step)
        return step

    def _load(self) -> checkpoint.Snapshot | None:
        """The newest checkpoint, once all processes see the same: a shared file system may show it to another node some
        seconds late."""
        snapshot = checkpoint.load(self.folder, quiet=not self.ranks.main)
        for _ in range(LATE):
            seen = self.ranks.all_gather_object(snapshot.step if snapshot else 0)
            if len(set(seen)) == 1:
                break
            time.sleep(1)
            snapshot = checkpoint.load(self.folder, quiet=True)
        return snapshot

    def _assert_replicated(self, step: int) -> None:
        """RtdmdError unless all processes hold the same weights at the same step."""
        learners = [saved for saved in self.learners.values() if isinstance(saved, Learner)]
        weights = [parameter for learner in learners for parameter in learner.parameters]
        self.ranks.assert_replicated([torch.tensor(step), *weights], f"the weights at {self.unit} {step}")

    def _save(self, step: int) -> None:
        """Written by the first process; the others wait for it, on the CPU. NonFiniteError, and nothing is written,
        where something to be kept is not finite."""
        self._assert_replicated(step)
        with self.ranks.sync_errors():
            if self.ranks.main:
                self._write(step)

    def _write(self, step: int) -> None:
        for saved in self.learners.values():
            if isinstance(saved, Learner):
                saved.require_finite()
        groups = {key: group for name, learner in self.learners.items() for key, group in learner.tensors(name).items()}
        checkpoint.save(self.folder, checkpoint.Snapshot(step, groups, self.journal.text()), self.keep)

    def _show(self, done: int) -> None:
        """Move the bar. What reads standard error (``| tee log``) may have died of the same signal as this process."""
        if not self.ranks.main:
            return
        with suppress(BrokenPipeError):
            if done % self.log_every == 0 or done == self.total:
                names = list(self.journal.row(self.log_every).items())[1:5]
                self._bar.set_postfix({name: f"{value:.3g}" for name, value in names}, refresh=False)
            self._bar.update()

    def log(self, step: int, values: Mapping[str, float], images: int = 0) -> None:
        """Write a step's values to the journal, and the speed if it made ``images``. Raises FloatingPointError on a
        non-finite value, naming it."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value}")
        if self.ranks.main:
            self.journal.add(step + 1, values, images)
            self._track(1)

    def _track(self, last: int | None = None) -> None:
        """Tell the trackers every step of the journal, or the ``last`` ones."""
        if not self.trackers:  # then no line is read again
            return
        for row in self.journal.steps(last):
            values = {name: value for name, value in row.items() if name != self.unit}
            for tracker in self.trackers:
                tracker.step(int(row[self.unit]), values)

    @property
    def rows(self) -> list[dict[str, float]]:
        """The rows of curves.csv: means over every ``log_every`` steps."""
        return self.journal.rows(self.log_every)

    def fault(self, step: int, error: FloatingPointError) -> RtdmdError:
        """The error that ends a run whose values went non-finite."""
        snapshot = checkpoint.load(self.folder, quiet=True)
        last = (
            f"the last good checkpoint is {self.unit} {snapshot.step} in {self.folder}" if snapshot else "no checkpoint"
        )
        return RtdmdError(f"{self.title} stopped at {self.unit} {step}: {error}; {last}")
