"""Planned against measured: both training stages run here for a few updates, each in a process of its own.

Measured is anonymous memory (what a program allocates; not the pages of its libraries and of mapped files), its peak
above a baseline. The baseline is the same process after a run of the same stage on a batch of almost nothing, so that
imports, thread pools and the libraries' own buffers are in it. The allocator is told to give back what is freed at
once: what it would keep for the next request is not the stage's.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from rtdmd.common.errors import RtdmdError
from rtdmd.common.rng import integers
from rtdmd.config import Params
from rtdmd.config.load import load_params, validate
from rtdmd.config.presets import merged
from rtdmd.config.render import params_text

ROUNDS = 2  # of stage one's generator updates, as the first finds no optimizer moments
INTERVAL = 0.001  # seconds between two looks at the memory
PREPARE, STAGES = ("prepare_prompts", "cache_teacher"), ("train_acdmd", "train_rtdmd")
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc's: one arena, larger blocks from and back to the system at once."""
_ALMOST_NOTHING: dict[str, Any] = {
    "train_acdmd": {"iterations": 1, "generator_every": 1, "batch_size": 1},
    "train_rtdmd": {
        "recipe": "custom",
        "epochs": 1,
        "prompts_per_epoch": 1,
        "group_size": 2,
        "fake_updates_per_epoch": 1,
        "fake_batch_size": 1,
        "last_step_batch_size": 2,
        "micro_batch": 2,
    },
}


def measured_table(params: Params, root: Path = Path(".")) -> str:
    """Planned and measured peaks of both training stages of ``params``, in a temporary copy of ``root``."""
    from rtdmd.plan.estimate import make_plan
    from rtdmd.plan.text import table

    plan = make_plan(params, root)
    rows = [["", "planned", "measured", "planned / measured"]]
    for stage, peak in measured_peaks(params, root).items():
        planned = plan.stages[stage].memory.peak
        rows.append([stage, *(f"{value / 2**20:.1f} MiB" for value in (planned, peak)), f"{planned / peak:.2f}"])
    return table(rows)


def measured_peaks(params: Params, root: Path = Path(".")) -> dict[str, int]:
    """Peak bytes above the baseline by training stage. RtdmdError where a run fails."""
    with tempfile.TemporaryDirectory(prefix="rtdmd-measure-") as name:
        work = Path(name)
        for entry in ("rtdmd", "tools", "data"):
            (work / entry).symlink_to((root / entry).absolute())
        shutil.copy(root / "dvc.yaml", work / "dvc.yaml")
        short = {"train_acdmd": {"iterations": ROUNDS * params.train_acdmd.generator_every}}
        _write(work, params, short | {"train_rtdmd": {"epochs": epochs_to_peak(params)}})
        for stage in PREPARE:
            _run(work, f"from rtdmd.cli import main; raise SystemExit(main([{stage!r}]))")
        return {
            stage: int(_run(work, f"from tools.plan_measure import observe; observe({stage!r})")) for stage in STAGES
        }


def epochs_to_peak(params: Params) -> int:
    """Epochs of stage two until one that holds the most: not the first, which finds no optimizer moments, and where
    matching stops at a random step one that stops at the last, whose graph then serves back-propagation too."""
    if params.train_rtdmd.matching_path != "random_step":
        return 2
    last = params.model.num_steps - 1
    stops = (integers(0, last + 1, params.run.seed, "train_rtdmd", epoch, "matching-stop") for epoch in count(1))
    return 2 + next(i for i, stop in enumerate(stops) if stop == last)


def observe(stage: str) -> None:
    """Run a stage in the current folder, first on almost nothing, then as params.yaml says, and print its peak."""
    root = Path(".")
    params = load_params()
    run: Callable[[Path], None] = import_module(f"rtdmd.stages.{stage}").run
    before = {path: path.read_bytes() for path in (root / "results" / "train_acdmd").glob("*")}
    _write(root, params, _ALMOST_NOTHING)
    run(root)
    _write(root, params, {})
    for path, content in before.items():
        path.write_bytes(content)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    watch = Watch()
    run(root)
    print(json.dumps(watch.stop()))


class Watch:
    """The peak of this process's anonymous memory above what it is now."""

    def __init__(self) -> None:
        self.start = self.peak = anonymous()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.peak = max(self.peak, anonymous())

    def stop(self) -> int:
        """Bytes; nothing is watched any more."""
        self._ended.set()
        self._thread.join()
        return self.peak - self.start


def anonymous() -> int:
    """Bytes of this process's anonymous memory (Linux): what is resident and no page of a file."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(resident) - int(shared)) * resource.getpagesize()


def _write(root: Path, params: Params, changes: dict[str, Any]) -> None:
    changed = validate(merged(params.model_dump(mode="json"), changes))
    (root / "params.yaml").write_text(params_text(changed, "rtdmd plan --measure"), encoding="utf-8")


def _run(work: Path, code: str) -> str:
    """The last line that a fresh process in ``work`` prints."""
    env = os.environ | ALLOCATOR | {"PYTHONPATH": str(work)}
    done = subprocess.run([sys.executable, "-c", code], cwd=work, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RtdmdError(f"a measured run failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return (done.stdout.strip().splitlines() or [""])[-1]
