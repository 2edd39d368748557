"""A workspace in which stage publish can run: random students, and what evaluate would have left."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from rtdmd.common.files import read_json, save_tensors, write_json
from rtdmd.config import Params
from rtdmd.pipeline.provenance import package_versions
from rtdmd.publish import gate, gate_check
from tests.workspace import make_workspace

SCORE = {"mean": 0.5, "ci95": 0.1, "ci95_prompts": None}
FIGURES = {"images": 4, "network_evaluations": 4, "strict": SCORE, "per_tag": {"strict": {"counting": SCORE}}}
CHECKPOINT_RANK = 4
LORA_LINES = ["      - results/publish/pytorch_lora_weights.safetensors\n"]
MERGED_LINES = [
    "      - results/publish/transformer/diffusion_pytorch_model.safetensors\n",
    "      - results/publish/transformer/config.json\n",
]


def publish_workspace(root: Path, teacher: Path, clip: Path, changes: dict[str, Any] | None = None) -> Params:
    """`make_workspace`, with invented results of stage evaluate."""
    params = make_workspace(root, teacher, clip, changes)
    folder = root / "results" / "evaluate"
    folder.mkdir()
    suite = {"prompts": 4, "resolution": 36, "trained_resolution": 36, "train_acdmd": FIGURES, "train_rtdmd": FIGURES}
    write_json(folder / "metrics.json", {"order": ["heldout"], "suites": {"heldout": suite}})
    write_json(folder / "scorers.json", {})
    Image.new("RGB", (8, 8)).save(folder / "contact_sheet.png")
    record = {"stage": "evaluate", "params": {"evaluate": {}}, "inputs": {}, "versions": package_versions()}
    write_json(folder / "resolved.json", record)
    return params


def without_lines(root: Path, lines: list[str]) -> None:
    """Take lines from dvc.yaml, each of which must be there once."""
    text = (root / "dvc.yaml").read_text(encoding="utf-8")
    for line in lines:
        assert text.count(line) == 1
        text = text.replace(line, "")
    (root / "dvc.yaml").write_text(text, encoding="utf-8")


def write_full_student(root: Path, params: Params, scale: float = 0.05) -> None:
    """Stage two's student as ``adapter.mode: full`` leaves it: all weights, moved a little."""
    from rtdmd.backbones import load_backbone

    state = load_backbone(params.model, vae=False, root=root).transformer.state_dict()
    generator = torch.Generator().manual_seed(7)
    moved = {
        name: value + scale * torch.randn(value.shape, generator=generator).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in state.items()
    }
    for stage in ("train_acdmd", "train_rtdmd"):
        save_tensors(moved, root / "results" / stage / "generator.safetensors", {"stage": stage})


def without_lora_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the base's pipeline be of a family for which diffusers writes no LoRA files."""
    for kind in StableDiffusion3Pipeline.__mro__:
        if "save_lora_weights" in vars(kind):
            monkeypatch.delattr(kind, "save_lora_weights")


def write_public_checkpoint(path: Path, root: Path, params: Params, seed: int, prefix: str = "") -> Path:
    """generator_ema.pt as the public code saves it, on the student's base: a state dict with the adapter's name in its
    keys."""
    from rtdmd.backbones import load_backbone

    backbone = load_backbone(params.model.of_student(), vae=False, root=root)
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name in backbone.lora_targets(params.adapter.targets):
        outer, inner = backbone.transformer.get_submodule(name).weight.shape
        tensors[f"{prefix}{name}.lora_A.default.weight"] = 0.1 * torch.randn(
            CHECKPOINT_RANK, inner, generator=generator
        )
        tensors[f"{prefix}{name}.lora_B.default.weight"] = 0.1 * torch.randn(
            outer, CHECKPOINT_RANK, generator=generator
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
    return path


@contextmanager
def gate_in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the gate's program in this process (a fresh one takes seconds), without its last look at what is imported."""
    before, threads = Path.cwd(), torch.get_num_threads()

    def run(command: list[str], **_: object) -> SimpleNamespace:
        work = Path(command[-1])
        try:
            gate_check.main(work)
        except (RuntimeError, ValueError) as error:
            return SimpleNamespace(returncode=1, stderr=str(error))
        finally:
            os.chdir(before)
        answer = read_json(work / "answer.json")
        assert "rtdmd.publish" in answer["ours"]  # it would be seen
        (work / "answer.json").write_text(json.dumps(answer | {"ours": []}))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(gate.subprocess, "run", run)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        torch.set_num_threads(threads)
        for name in ("", *gate_check.LIBRARIES):
            logger = logging.getLogger(name)
            for handler in [h for h in logger.handlers if isinstance(h, gate_check.Recorder)]:
                logger.removeHandler(handler)
