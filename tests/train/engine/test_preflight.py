"""Before a long run: settings, room, processes of one kind, and a sum over them; each fault is one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import configure
from rtdmd.config import preset
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.engine.preflight import (
    checkpoint_bytes,
    preflight,
    require_all_reduce,
    require_deterministic,
    require_same_hardware,
)
from rtdmd.train.learner import EMA, Learner

PARAMS = preset("smoke", {"run": {"threads": 1}})
COUNT = 1000


def learners() -> list[Learner]:
    """A generator with an average and a fake score, of COUNT parameters each."""
    weights = [torch.nn.Parameter(torch.zeros(COUNT)) for _ in range(2)]
    ema = EMA([weights[0]], 0.9)
    settings = PARAMS.train_acdmd.generator_optimizer
    return [Learner.adamw(weights[:1], settings, ema=ema), Learner.adamw(weights[1:], settings)]


def stage_in(folder: Path) -> Any:
    """What the checks ask of a stage."""
    for path in (folder / "runs", folder / "results"):
        path.mkdir()
    return SimpleNamespace(name="train_acdmd", params=PARAMS, run_dir=folder / "runs", root=folder)


def test_room_is_that_of_the_checkpoints_kept_one_more_and_the_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(PARAMS.run)
    stage, own = stage_in(tmp_path), learners()
    assert checkpoint_bytes(own) == 4 * COUNT * (4 + 3)
    need = 3 * checkpoint_bytes(own) + 2 * 4 * COUNT
    for free, fits in ((need, True), (need - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        if fits:
            preflight(stage, Ranks(), own, keep=2)
            continue
        with pytest.raises(
            UserError, match=r"runs: 0\.00 GiB free, but train_acdmd needs 0\.00 for 3 .* lower train_ac"
        ):
            preflight(stage, Ranks(), own, keep=2)
        (stage.run_dir / "step-00000001").mkdir()  # on resuming, what is there is room already taken
        (stage.run_dir / "step-00000001/a.safetensors").write_bytes(b"x")
        preflight(stage, Ranks(), own, keep=2)


def test_settings_that_changed_after_the_start_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    configure(PARAMS.run)
    require_deterministic(PARAMS.run)
    torch.use_deterministic_algorithms(False)
    with pytest.raises(UserError, match=r"threads: 1\) and deterministic algorithms off"):
        require_deterministic(PARAMS.run)
    torch.use_deterministic_algorithms(True)
    with pytest.raises(UserError, match=r"torch has 1 threads \(run\.threads: 2\)"):
        require_deterministic(preset("smoke", {"run": {"threads": 2}}).run)
    cuda = preset("smoke", {"run": {"threads": 1, "device": "cuda"}}).run
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    require_deterministic(cuda)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match=r"CUBLAS_WORKSPACE_CONFIG is ':0:0', .* unset it, or set :4096:8"):
        require_deterministic(cuda)


def test_processes_that_differ_or_add_up_wrongly_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(0, 2)
    monkeypatch.setattr(Ranks, "all_gather_object", lambda self, own: [own, ("2.0", "cpu")])
    with pytest.raises(UserError, match=r"processes differ: torch .* on cpu, torch 2\.0 on cpu; use machines of one"):
        require_same_hardware(ranks)
    monkeypatch.setattr(Ranks, "all_reduce_tensors", lambda self, tensors: tensors[0].add_(1))
    with pytest.raises(UserError, match=r"the sum over 2 processes is 2\.0 and not 3\.0: .*network is faulty"):
        require_all_reduce(ranks)
    monkeypatch.setattr(Ranks, "all_reduce_tensors", lambda self, tensors: tensors[0].add_(2))
    require_all_reduce(ranks)
