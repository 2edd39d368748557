"""DMD2 with a fake score told the step: each stop trains its own adapter, and stage two gets the last step's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from rtdmd.common.files import load_tensors
from rtdmd.common.rng import integers
from rtdmd.methods import METHODS
from rtdmd.stages import train_acdmd
from rtdmd.train.engine import checkpoint
from tests.train.workshop import make_trainable
from tests.workspace import set_params


def test_each_stop_trains_its_own_fake_score(tiny_teacher: Path, tiny_clip: Path, tmp_path: Path) -> None:
    make_trainable(tmp_path, tiny_teacher, tiny_clip)
    method = METHODS["dmd2-steps"]
    changes = method.changes()
    changes["train_acdmd"] |= {"iterations": 8}
    params = set_params(tmp_path, changes)
    train_acdmd.run(tmp_path)
    stops = Counter(integers(0, 4, params.run.seed, "train_acdmd", step, "stop") for step in range(8))
    assert len(stops) > 1
    (run_dir,) = (tmp_path / ".rtdmd/runs").glob("train_acdmd-*")
    snapshot = checkpoint.load(run_dir)
    assert snapshot is not None
    names = ["early0", "early1", "early2", "fake"]
    assert [int(snapshot.tensors[f"{name}_updates"]["updates"]) for name in names] == [stops[k] for k in range(4)]
    written, _ = load_tensors(tmp_path / "results/train_acdmd/fake.safetensors")
    last = sorted(float(part.double().norm()) for part in snapshot.tensors["fake_parameters"].values())
    assert torch.allclose(
        torch.tensor(sorted(float(part.double().norm()) for part in written.values())), torch.tensor(last)
    )
