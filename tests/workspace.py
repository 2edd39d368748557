"""A small repository folder to run real stages in: tiny random teacher and CLIP, smoke parameters, random students.

What training would leave behind (adapters, curves, settings) is written here with random numbers, in the same formats,
so that the stages after training can be tested without it.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from rtdmd.common.files import save_tensors, write_json
from rtdmd.config import Params, preset
from rtdmd.config.render import params_text
from rtdmd.pipeline.provenance import package_versions
from rtdmd.rewards.protocol import identities
from rtdmd.rewards.registry import load_reward

REPOSITORY = Path(__file__).parents[1]
STAGES = ("train_acdmd", "train_rtdmd")
SMALL: dict[str, Any] = {
    "run": {"threads": 1},
    "model": {"teacher_steps": 3},
    "train_rtdmd": {"backprop_at": "last_step"},  # a random step costs another pass in some epochs
    "evaluate": {"batch_size": 24},
}


def make_workspace(root: Path, teacher: Path, clip: Path, changes: dict[str, Any] | None = None) -> Params:
    """Fill ``root`` so that every stage after prepare_prompts can run; ``changes`` go over the smoke parameters."""
    (root / "rtdmd").symlink_to(REPOSITORY / "rtdmd")
    shutil.copy(REPOSITORY / "dvc.yaml", root / "dvc.yaml")
    (root / "data" / "world").mkdir(parents=True)
    (root / "data" / "prompts").mkdir()
    shutil.copytree(teacher, root / "data" / "world" / "teacher")
    shutil.copytree(clip, root / "data" / "world" / "clip")
    params = set_params(root, changes or {})
    for stage in STAGES:
        write_random_student(root / "results" / stage, params, seed=STAGES.index(stage))
        write_training_records(root / "results" / stage, params, stage)
    write_scorers(root, params)
    return params


def set_params(root: Path, changes: dict[str, Any]) -> Params:
    """Write params.yaml: the smoke preset, SMALL, then ``changes``."""
    from rtdmd.config.presets import merged

    params = preset("smoke", merged(SMALL, changes))
    (root / "params.yaml").write_text(params_text(params, "a test"), encoding="utf-8")
    return params


def write_random_student(folder: Path, params: Params, seed: int, scale: float = 0.3) -> Path:
    """A random adapter in the layout of generator.safetensors, large enough to change every image."""
    from rtdmd.backbones import load_backbone

    root = folder.parents[1]
    transformer = load_backbone(params.model, vae=False, root=root)
    generator = torch.Generator().manual_seed(100 + seed)
    tensors = {}
    for name in transformer.lora_targets(params.adapter.targets):
        outer, inner = transformer.transformer.get_submodule(name).weight.shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(params.adapter.rank, inner, generator=generator) * scale
        tensors[f"{name}.lora_B.weight"] = torch.randn(outer, params.adapter.rank, generator=generator) * scale
    metadata = {"rank": str(params.adapter.rank), "alpha": str(params.adapter.alpha), "stage": folder.name}
    save_tensors(tensors, folder / "generator.safetensors", metadata)
    return folder / "generator.safetensors"


def write_scorers(root: Path, params: Params) -> None:
    """scorers.json as stage two leaves it."""
    cpu = torch.device("cpu")
    rewards = [load_reward(spec, cpu, root) for spec in params.train_rtdmd.rewards]
    write_json(root / "results/train_rtdmd/scorers.json", identities(rewards))


def write_training_records(folder: Path, params: Params, stage: str) -> None:
    """curves.csv, watched.csv, watched_parses.csv, image_log.zip (of none) and resolved.json as a training stage
    leaves them."""
    x = "iteration" if stage == "train_acdmd" else "epoch"
    lines = [
        f"{x},fake_loss,generator_gradient",
        *(f"{i},{30 / i:.4f},{0.2 + 0.01 * (i % 7):.4f}" for i in range(1, 61)),
    ]
    (folder / "curves.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "watched.csv").write_text(f"{x},heldout/clipscore\n0,0.25\n30,0.5\n60,0.75\n", encoding="utf-8")
    (folder / "watched_parses.csv").write_text(
        f"{x},suite,prompt_id,index,tag,strict,background,cells\n", encoding="utf-8"
    )
    zipfile.ZipFile(folder / "image_log.zip", "w").close()
    sections = {name: getattr(params, name).model_dump(mode="json") for name in ("model", "adapter", stage)}
    run = {f"run.{key}": getattr(params.run, key) for key in ("seed", "threads", "device")}  # as dvc.yaml names them
    inputs = {"data/world/teacher": "0" * 64, "rtdmd/train": "1" * 64}
    write_json(
        folder / "resolved.json",
        {"stage": stage, "params": run | sections, "inputs": inputs, "versions": package_versions()},
    )
