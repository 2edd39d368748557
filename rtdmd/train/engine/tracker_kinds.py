"""accelerate's trackers as a run here is shown in them; imported where one is asked for (`trackers`).

What TensorBoard and DVCLive have in the run folder is made anew from the journal at each start. W&B and Trackio keep a
run that goes on: it is told the steps that it lacks. A run repeats to the bit, so what it has past the checkpoint is
what the resumed run does again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.tracking import (
    DVCLiveTracker,
    GeneralTracker,
    TensorBoardTracker,
    TrackioTracker,
    WandBTracker,
)
from PIL import Image

from rtdmd.common.files import remove, write_atomic

PROJECT = "rtdmd"
IMAGE_LOG = "image_log"
PATIENCE = 120.0
"""Seconds at a run's end for what W&B has not received."""


class Tracker(GeneralTracker):
    """What each tracker here has beside accelerate's interface."""

    faults: tuple[type[Exception], ...] = (OSError,)
    """What it raises where it cannot be had."""
    remedy = "leave it out"

    @property
    def first(self) -> int:
        """Number of the first step that it lacks as it is started."""
        return 0

    def show(self, picture: Path, step: int) -> None:
        """Show a run's image grid after ``step``."""
        raise NotImplementedError


class DvcLive(DVCLiveTracker, Tracker):
    """DVC's tracker, told to commit nothing, save no experiment and write no dvc.yaml. Its folder is what `dvc plots
    show` and `dvc metrics show` read."""

    def __init__(self, folder: Path) -> None:
        remove(folder / "dvclive")
        super().__init__(dir=str(folder / "dvclive"), save_dvc_exp=False, dvcyaml=None)

    def log(self, values: dict[str, float], step: int) -> None:
        """A row in each value's file. Not accelerate's, whose `Live.next_step` reads all files again at every step; and
        no slash in a name, since its summary cannot hold both `a` and `a/b`."""
        self.live.step = step
        for name, value in values.items():
            self.live.log_metric(name.replace("/", "."), value)
        self.live.make_summary()

    def show(self, picture: Path, step: int) -> None:
        """The newest image grid alone: it has no steps for images."""
        self.live.log_image(f"{IMAGE_LOG}.png", picture)


class TensorBoard(TensorBoardTracker, Tracker):
    """TensorBoard's files."""

    def __init__(self, folder: Path) -> None:
        remove(folder / "tensorboard")
        super().__init__("tensorboard", folder)

    def show(self, picture: Path, step: int) -> None:
        with Image.open(picture) as image:
            self.log_images({IMAGE_LOG: np.asarray(image)[None]}, step, dataformats="NHWC")


class Trackio(TrackioTracker, Tracker):
    """Trackio's run in the project `rtdmd`, on this machine or where its TRACKIO_ variables say. What it cannot send it
    keeps and says so itself."""

    faults = (OSError, ValueError)
    remedy = "see its TRACKIO_ variables, or leave it out"

    def __init__(self, folder: Path) -> None:
        super().__init__(PROJECT, name=run_id(folder), resume="allow", embed=False)

    @property
    def first(self) -> int:
        """The step after the run's last one; nothing public tells it for a Space or a server."""
        return int(self.run._next_step)

    def show(self, picture: Path, step: int) -> None:
        import trackio

        self.run.log({IMAGE_LOG: trackio.Image(picture)}, step=step)


class Wandb(WandBTracker, Tracker):
    """W&B's run in the project `rtdmd`, or in that of WANDB_PROJECT. Its local files are made anew in the run folder,
    with WANDB_MODE=offline from the whole journal."""

    remedy = "`wandb login`, or WANDB_MODE=offline, or leave it out"

    def __init__(self, folder: Path) -> None:
        import wandb

        self.faults = (OSError, ValueError, wandb.Error)
        remove(folder / "wandb")
        name = run_id(folder)
        super().__init__(
            os.environ.get("WANDB_PROJECT", PROJECT),
            id=name,
            name=name,
            resume="allow",
            dir=str(folder),
            settings=wandb.Settings(console="off", finish_timeout=PATIENCE),
        )

    @property
    def first(self) -> int:
        """The service takes no step twice."""
        return int(self.run.starting_step)

    def show(self, picture: Path, step: int) -> None:
        with Image.open(picture) as image:
            self.log_images({IMAGE_LOG: [image]}, step)


KINDS: dict[str, Callable[[Path], Tracker]] = {
    "dvclive": DvcLive,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}
"""Each makes the tracker of the run in a folder, not yet started."""


def run_id(folder: Path) -> str:
    """What a service knows the run in ``folder`` by: the folder's name, and a part that its first start draws, so that
    a run made again in a new folder is another."""
    path = folder / "tracker-id"
    if not path.is_file():
        write_atomic(path, f"{folder.name}-{secrets.token_hex(4)}\n")
    return path.read_text(encoding="utf-8").strip()


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree's leaves by dotted key, the places of lists counted from 0; an empty part of it is no leaf."""
    if not isinstance(tree, Mapping | list | tuple):
        return {prefix: tree}
    parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    leaves: dict[str, Any] = {}
    for key, part in parts:
        leaves |= flat(part, f"{prefix}.{key}" if prefix else str(key))
    return leaves


@contextmanager
def accelerate_state() -> Iterator[None]:
    """accelerate's state, which its trackers ask for. Several processes have theirs already (`Ranks`); one process gets
    one for as long as it is watched."""
    if PartialState._shared_state:
        yield
        return
    state = PartialState(cpu=True)
    try:
        yield
    finally:
        state.destroy_process_group()
        PartialState._reset_state()
