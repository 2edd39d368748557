"""The gate: no export leaves that a stranger's diffusers does not load, run and reproduce.

A fresh process with nothing of ours (gate_check.py) runs the card's Python as it is printed, loads every published
form, and samples from fixed latents. Here its answer is judged: every tensor consumed, no warning, latents within 1e-4
of the student's in memory (float32, at the trained η, at 0 and at 1; in units of their root mean square where
that is above 1, since rounding grows with it), and ten times nearer to the student than to the base model, which also
catches an adapter that changes little and is loaded at a wrong scale.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones import Backbone, family_module
from rtdmd.backbones.protocol import Conditioning, PipelineBackbone
from rtdmd.backbones.sampling import Velocity, rollout
from rtdmd.common import columns
from rtdmd.common.errors import RtdmdError
from rtdmd.common.files import read_json, save_tensors, sha256_file, tree_files, write_json
from rtdmd.common.processes import limited
from rtdmd.common.rng import normal
from rtdmd.config import ModelParams
from rtdmd.publish.adapter import Adapter, write_lora
from rtdmd.publish.base import BaseModel

TOLERANCE = 1e-4  # largest difference of a latent, float32
MARGIN = 10.0  # the base model must be this many times farther than the student
SEED = 2605  # of the fresh noise
RELEASED = ("torch", "diffusers", "transformers", "peft", "safetensors")
PROGRAM = "rtdmd.publish.gate_check"
GATE_SECONDS = 12 * 3600.0
"""It loads every form of a model in float32, samples each at three values of η, and runs the card's examples: minutes
for the world, hours for a model of 12 billion parameters on the CPU. Longer than this it hangs."""


@dataclass(frozen=True)
class GateInputs:
    """The inputs on which student and export are compared: B latents, their conditioning, and the fresh noise."""

    latents: Tensor  # (B, C, H, W)
    noises: Tensor  # (K-1, B, C, H, W)
    cond: Conditioning  # B rows, float32
    sigmas: Tensor  # (K+1,)
    order: Tensor  # where each number of a latent comes from inside the pipeline's loop, in that loop's shape

    def inside(self, x: Tensor) -> Tensor:
        """Latents (B, C, H, W) as they lie inside the pipeline's loop."""
        return x.flatten(1)[:, self.order.flatten()].reshape(len(x), *self.order.shape)


@dataclass(frozen=True)
class Source:
    """The student to export."""

    model: ModelParams  # on the student's base (`ModelParams.of_student`)
    forms: Sequence[str]  # "lora", "merged"
    adapters: Mapping[str, Adapter]  # by stage, in their order; empty where all weights were trained
    full: Path | None  # the weights of such a student
    student: Callable[[Backbone], Velocity]  # the student in memory, on a backbone of its own
    prompt: str
    called: str  # the card's name of the folder
    threads: int
    seed: int
    metadata: Mapping[str, str]  # for the headers of the weights
    root: Path = Path(".")
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class ExportedWeights:
    """What the weights' making leaves for the rest."""

    base: BaseModel
    adapter: Adapter | None  # composed
    sigmas: list[float]
    scheduler: Mapping[str, Any] | None  # the base's own configuration, where its pipeline runs the levels with it
    gate_inputs: GateInputs
    latents: dict[str, dict[str, Tensor]]  # form -> η -> the student's latents


def make_gate_inputs(backbone: PipelineBackbone, family: str, cond: Conditioning, sigmas: Tensor) -> GateInputs:
    """Latents from a fixed key, and the noise that the pipeline's scheduler draws after ``torch.manual_seed(SEED)``."""
    shape = backbone.latent_shape()
    device = backbone.device
    count = math.prod(shape)
    numbers = torch.arange(count, device=device).reshape(1, *shape)
    order = family_module(family).LAYOUT.packed(backbone.pipeline, numbers)[0]
    generator = torch.Generator(device).manual_seed(SEED)
    noises = torch.empty(len(sigmas) - 2, len(cond), count, device=device)
    for noise in noises:  # drawn in the loop's own order, put where they belong in ours
        noise[:, order.flatten()] = torch.randn((len(cond), *order.shape), generator=generator, device=device).flatten(
            1
        )
    latents = normal((len(cond), *shape), "publish", "gate", "latents").to(device)
    return GateInputs(
        latents, noises.reshape(-1, len(cond), *shape), cond.to(device=device, dtype=torch.float32), sigmas, order
    )


def compared_etas(eta: float) -> list[str]:
    """The values of η that are compared: Euler, the trained one, all noise anew."""
    return [f"{value:g}" for value in sorted({0.0, eta, 1.0})]


@torch.no_grad()
def student_latents(velocity: Velocity, gate_inputs: GateInputs, eta: float) -> dict[str, Tensor]:
    """The student's latents x̂_0 (B, C, H, W) at every η, by our own sampler."""
    return {
        level: rollout(
            velocity, gate_inputs.latents, gate_inputs.cond, gate_inputs.sigmas, float(level), gate_inputs.noises
        )[-1]
        for level in compared_etas(eta)
    }


def blocks_of(card: str) -> list[str]:
    """The card's Python blocks, in order."""
    return re.findall(r"^```python\n(.*?)\n```$", card, flags=re.DOTALL | re.MULTILINE)


def run_gate(source: Source, exported: ExportedWeights, folder: Path, called: str) -> dict[str, Any]:
    """Test the ``folder`` that should hold this student and return what gate.json holds; RtdmdError with every reason
    when it is refused. called: the card's name of the folder."""
    versions = {name: version(name) for name in RELEASED}
    blocks = blocks_of((folder / "README.md").read_text(encoding="utf-8"))
    answer = _ask(source, exported, folder, called, blocks)
    problems = [*unreleased(versions), *answer["problems"], *_judge(answer)]
    if problems:
        raise RtdmdError(
            f"the gate refuses this export, nothing was published: {'; '.join(problems)}\n{table(answer['forms'])}"
        )
    return {
        "forms": {form: _rounded(found) for form, found in answer["forms"].items()},
        "tolerance": TOLERANCE,
        "margin": MARGIN,
        "snippets": len(blocks),
        "warnings": len(answer["warnings"]),
        "versions": versions,
        "sha256": {path.relative_to(folder).as_posix(): sha256_file(path) for path in tree_files(folder)},
    }


def unreleased(versions: Mapping[str, str]) -> list[str]:
    """Packages that a stranger does not get from `pip install`: development versions and release candidates."""
    odd = {name: text for name, text in versions.items() if re.search(r"(a|b|rc|dev)\d*$", text.split("+")[0])}
    return [f"{name} {text} is no release; install one and publish again" for name, text in odd.items()]


def _ask(source: Source, exported: ExportedWeights, folder: Path, called: str, blocks: Sequence[str]) -> dict[str, Any]:
    """Write the request, run the program in a fresh process, read its answer."""
    model = source.model
    base = exported.base
    gate_inputs = exported.gate_inputs
    layout = family_module(model.family).LAYOUT
    stages = source.adapters if "lora" in source.forms else {}  # else the pipeline may have no file for them
    request = {
        "blocks": blocks,
        "export": str(folder.resolve()),
        "base": str(base.folder.resolve()),
        "pipeline": base.pipeline,
        "transformer": base.transformer,
        "left_out": list(base.text_parts),
        "forms": list(source.forms),
        "stages": list(stages),
        "inputs": {name: f"input.{key}" for name, key in layout.inputs.items()} | {"latents": "latents"},
        "settings": {
            "num_inference_steps": model.num_steps,
            "guidance_scale": 1.0,
            "height": model.resolution,
            "width": model.size[1],
            "max_sequence_length": model.max_sequence_length,
        },
        "etas": compared_etas(model.eta),
        "seed": SEED,
        "threads": source.threads,
        "device": str(source.device),
    }
    tensors = {f"input.{key}": value for key, value in gate_inputs.cond.tensors.items()}
    tensors["latents"] = gate_inputs.inside(gate_inputs.latents) if layout.given_packed else gate_inputs.latents
    for form, levels in exported.latents.items():
        tensors |= {f"{form}.{level}": gate_inputs.inside(value) for level, value in levels.items()}
    program = find_spec(PROGRAM)  # found without importing it
    assert program is not None and program.origin is not None
    with tempfile.TemporaryDirectory(prefix="rtdmd-gate-") as name:
        work = _working_folder(Path(name), [called, model.teacher])
        _link(work, called, folder)
        _link(work, model.teacher, base.folder)
        write_json(work / "request.json", request)
        save_tensors(tensors, work / "tensors.safetensors")
        for stage, adapter in stages.items():
            write_lora(adapter, work / f"{stage}.safetensors", pipeline=base.pipeline)
        with limited("it is the gate's process, and nothing was published; `rtdmd publish` starts it again"):
            done = subprocess.run(
                [sys.executable, "-I", program.origin, str(work)],
                capture_output=True,
                errors="replace",
                check=False,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                timeout=GATE_SECONDS,
            )
        if done.returncode != 0:
            last = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise RtdmdError(f"the gate refuses this export, nothing was published; its process ended with:\n{last}")
        return read_json(work / "answer.json")


def _working_folder(top: Path, names: Sequence[str]) -> Path:
    """The check's working directory: as deep below ``top`` as the card's ``names`` go up."""
    ups = max(Path(os.path.normpath(name)).parts.count("..") for name in names)
    work = top.joinpath("work", *["below"] * ups)
    work.mkdir(parents=True)
    return work


def _link(work: Path, name: str, target: Path) -> None:
    """Let ``name``, as the card writes it, lead to ``target`` in the working directory of the check."""
    if PurePosixPath(name).is_absolute():
        return
    place = Path(os.path.normpath(work / name))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target.resolve(), target_is_directory=True)


def _judge(answer: Mapping[str, Any]) -> list[str]:
    """Every reason to refuse."""
    problems = [f"a warning while loading: {text}" for text in answer["warnings"]]
    problems += [f"the process imported {name}" for name in answer["ours"]]
    for form, found in answer["forms"].items():
        consumed, keys = found["keys"]
        if consumed != keys or keys == 0:
            problems.append(f"{form}: {consumed} of {keys} tensors were consumed")
        for level, off in found["from_student"].items():
            base = found["from_base"][level]
            allowed = TOLERANCE * max(1.0, found["scale"][level])
            if not off <= allowed:
                problems.append(f"{form}, eta {level}: {off:.1e} from the student in memory, allowed {allowed:.1e}")
            if not base > 0 or not base >= MARGIN * off:
                problems.append(f"{form}, eta {level}: {off:.1e} from the student and {base:.1e} from the base model")
    return problems


def _rounded(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a form, differences to two digits."""
    rounded: dict[str, Any] = {"keys": found["keys"]}
    for kind in found.keys() - {"keys"}:
        rounded[kind] = {level: float(f"{number:.1e}") for level, number in found[kind].items()}
    return rounded


def table(forms: Mapping[str, Any]) -> str:
    """Plain text: a row per form; keys consumed, largest difference to the student at each η, to the base."""
    levels = list(next(iter(forms.values()))["from_student"])
    head = ["form", "keys", *(f"student, eta {level}" for level in levels), f"base, eta {levels[0]}"]
    rows = [head]
    for form, found in forms.items():
        numbers = [f"{found['from_student'][level]:.1e}" for level in levels]
        rows.append([form, "{} of {}".format(*found["keys"]), *numbers, f"{found['from_base'][levels[0]]:.2g}"])
    return columns.table(rows, left=range(len(head)))
