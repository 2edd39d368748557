"""What the training tests share: a tiny backbone to put roles on, conditioning, and a workspace ready to train."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import Backbone, Conditioning
from rtdmd.common.files import load_tensors
from rtdmd.common.rng import normal
from rtdmd.config import AdapterParams, OptimizerParams, Params, preset
from rtdmd.plan.budget import Prices
from rtdmd.stages import cache_teacher, prepare_prompts
from rtdmd.train.adapters import ADAPTERS, AdapterBank
from tests.workspace import REPOSITORY, make_workspace

SHAPE = (4, 9, 9)
LEVELS = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
FREE = dict.fromkeys(vars(Prices()), 0.0)  # every pass for nothing


def tiny_backbone(teacher: Path, vae: bool = False, dtype: str = "float32") -> Backbone:
    """The tiny teacher behind the backbone protocol."""
    return load_backbone(preset("smoke", {"model": {"teacher": str(teacher), "dtype": dtype}}).model, vae=vae)


def adapter(mode: str = "lora", rank: int = 4, again: bool = False) -> AdapterParams:
    """The adapter section; ``again``: with gradient checkpointing."""
    settings = {"mode": mode, "rank": rank, "alpha": 2 * rank, "targets": "attention", "gradient_checkpointing": again}
    return AdapterParams.model_validate(settings)


def roles_on(backbone: Backbone, stage: str = "train_acdmd", mode: str = "lora", seed: int = 0) -> AdapterBank:
    """Roles of a stage on a copy of ``backbone``, whose own transformer stays as it is."""
    return AdapterBank(copy.deepcopy(backbone), adapter(mode), ADAPTERS[stage], seed)


def adamw(lr: float, **changes: Any) -> OptimizerParams:
    """An optimizer section: the world preset's, at a rate of one's own."""
    return preset("world").train_acdmd.generator_optimizer.model_copy(update={"lr": lr, **changes})


def disturb(bank: AdapterBank, *names: str, scale: float = 0.05) -> None:
    """Move the adapters away from where they start (a fresh LoRA adds nothing), by fixed random numbers."""
    for name in names:
        state = bank.state(name)
        moved = {key: value + scale * normal(value.shape, name, key).to(value) for key, value in state.items()}
        bank.load(name, moved, "a test")


def conditioning(rows: int, name: str = "cond") -> Conditioning:
    """Random conditioning of the tiny teacher's widths."""
    sequence, pooled = normal((rows, 13, 24), name, "sequence"), normal((rows, 20), name, "pooled")
    return Conditioning({"encoder_hidden_states": sequence, "pooled_projections": pooled})


def batch(rows: int) -> tuple[Tensor, Tensor, Conditioning]:
    """x (B, 4, 9, 9), sigma (B,), conditioning."""
    return normal((rows, *SHAPE), "x"), torch.linspace(0.1, 1.0, rows), conditioning(rows)


def make_trainable(root: Path, teacher: Path, clip: Path) -> Params:
    """A workspace in which the training stages' inputs are there: prompts and text cache. Its code is a copy, so that
    an edit while the tests run does not look like another run."""
    params = make_workspace(root, teacher, clip)
    (root / "rtdmd").unlink()
    shutil.copytree(REPOSITORY / "rtdmd", root / "rtdmd", ignore=shutil.ignore_patterns("__pycache__"))
    prepare_prompts.run(root)
    cache_teacher.run(root)
    return params


def results(root: Path, stage: str) -> dict[str, bytes]:
    """The outputs of a stage."""
    return {path.name: path.read_bytes() for path in sorted((root / "results" / stage).iterdir())}


def rows_of(csv: bytes) -> list[dict[str, Any]]:
    """A CSV of numbers; empty cells are left out."""
    header, *lines = csv.decode().splitlines()
    cells = [zip(header.split(","), line.split(","), strict=True) for line in lines]
    return [{name: float(value) for name, value in row if value} for row in cells]


def checkpoints(root: Path, group: str) -> list[Tensor]:
    """The generator's weights or average in each checkpoint of the run, one vector each, the oldest first."""
    folders = sorted(root.glob(".rtdmd/runs/*/step-*"))
    found = [load_tensors(folder / f"generator_{group}.safetensors")[0] for folder in folders]
    return [torch.cat([value.flatten().double() for _, value in sorted(tensors.items())]) for tensors in found]


@contextmanager
def killed_at(trainer: type[Any], step: int) -> Iterator[None]:
    """What runs in here is ended by this step of the trainer."""
    real = trainer.step

    def one(self: Any, *given: Any) -> dict[str, float]:
        if given[-1].step == step:  # the draws
            raise KeyboardInterrupt
        return real(self, *given)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "step", one)
        yield


def count_passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Images that go through each role, and back through any, as often as they do, from now on."""
    seen: Counter[str] = Counter()
    real = AdapterBank.velocity

    def velocity(self: Any, role: str, x: Tensor, *more: Any, **options: Any) -> Tensor:
        seen[role] += len(x) * (2 if options.get("guidance", 1.0) != 1.0 else 1)
        v = real(self, role, x, *more, **options)
        if v.requires_grad:
            v.register_hook(lambda gradient: seen.update(backward=len(x)))
        return v

    monkeypatch.setattr(AdapterBank, "velocity", velocity)
    return seen
