"""One export from its parts to the gate: weights, scheduler, card, and the test that they must pass.

Stage publish and `rtdmd import` write the same folder; they differ in where the student comes from.
``output_path(name)`` says where a file of the folder is written; nothing here decides what becomes of the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones import Backbone, Conditioning, load_backbone
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.backbones.sampling import ImageNoise, Velocity, sample
from rtdmd.backbones.snapshot import base_folder
from rtdmd.common.errors import UserError
from rtdmd.common.files import write_atomic, write_json
from rtdmd.common.images import grid, save_png
from rtdmd.common.lazy_tensors import open_tensors
from rtdmd.common.torch_setup import DTYPES, free_memory
from rtdmd.config import ModelParams
from rtdmd.pipeline.declared import FORMS
from rtdmd.publish.adapter_file import check_belongs
from rtdmd.publish.card import model_card
from rtdmd.publish.card_data import WIDGET, Published
from rtdmd.publish.compose import Adapter, compose
from rtdmd.publish.export import BaseModel, base_model, pipeline_class, write_lora
from rtdmd.publish.gate import Export, GateInputs, make_gate_inputs, run_gate, student_latents
from rtdmd.publish.merge import CONFIG, MERGED, Weights, base_weights, full_weights, merged_weights, write_merged
from rtdmd.publish.reference import check_merged, whole_student
from rtdmd.publish.scheduler import scheduler_config
from rtdmd.train.rounding import report_lost_export

SCHEDULER = "scheduler/scheduler_config.json"
CARD = "README.md"
GATE = "gate.json"
PROVENANCE = "provenance.json"
RENOISE_FROM = 0.5  # trained eta from which diffusers' re-noising (eta = 1) is nearer than its Euler step (eta = 0)
# images of the example, and about how large each is shown
PICTURES = 4
MIN_SIDE = 144

OutputPath = Callable[[str], Path]


@dataclass(frozen=True)
class Source:
    """The student to export."""

    model: ModelParams  # on the student's base (`ModelParams.of_student`)
    forms: Sequence[str]
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

    def stacked(self) -> Mapping[str, Adapter]:
        """The adapters that the gate loads one on the other: none where no adapter is published, for the base's
        pipeline may have no file for it."""
        return self.adapters if "lora" in self.forms else {}


@dataclass(frozen=True)
class ExportedWeights:
    """What the weights' making leaves for the rest."""

    base: BaseModel
    adapter: Adapter | None  # composed
    sigmas: list[float]
    scheduler: Mapping[str, Any] | None  # the base's own configuration, where its pipeline runs the levels with it
    gate_inputs: GateInputs
    latents: dict[str, dict[str, Tensor]]  # form -> η -> the student's latents


def check_forms(params_format: str, mode: str) -> tuple[str, ...]:
    """The forms of ``publish.format``; UserError where a student of ``adapter.mode`` cannot have one of them."""
    forms = FORMS[params_format]
    if mode == "full" and "lora" in forms:
        raise UserError(
            f"publish.format: {params_format} with adapter.mode: full, which trains no adapter; allowed for it: merged"
        )
    return forms


def make_weights(source: Source, output_path: OutputPath) -> ExportedWeights:
    """Write the weights and the example's picture; sample what the gate will compare with.

    One model is held at a time: the text encoders, the student that draws the example, the student in float32 that the
    gate's is compared with, and the student of the merged file.
    """
    base = base_model(base_folder(source.model, text=True, root=source.root), source.model.key)
    if "lora" in source.forms and source.adapters:
        pipeline_class(base.pipeline)  # refused before the images, which take minutes
    cond = _conditioning(source)
    free_memory(source.device)
    backbone = load_backbone(source.model, device=source.device, root=source.root)
    for name, one in source.adapters.items():  # before any adapter wraps the layers
        check_belongs(one, backbone, name)
    sigmas = backbone.sigmas(source.model.num_steps)
    velocity = source.student(backbone)
    _draw_example(source, backbone, velocity, cond, sigmas, output_path(WIDGET))
    if source.model.dtype != "float32":  # compared in float32
        del backbone, velocity
        free_memory(source.device)
        backbone = load_backbone(_exact(source.model), vae=False, device=source.device, root=source.root)
        velocity = source.student(backbone)
    adapter = compose(list(source.adapters.values())) if source.adapters else None
    if "lora" in source.forms and adapter is not None:
        write_lora(adapter, output_path(PUBLISHED), source.metadata, base.pipeline)
    gate_inputs = make_gate_inputs(backbone, source.model.family, cond, sigmas)
    latents = {"lora": student_latents(velocity, gate_inputs, source.model.eta)}
    exported = ExportedWeights(base, adapter, sigmas.tolist(), backbone.own_scheduler(), gate_inputs, latents)
    if "merged" in source.forms:
        written = _write_whole(source, base, adapter, output_path)
        latents["merged"] = latents["lora"]
        if source.model.dtype != "float32":
            if adapter is not None:
                check_merged(written, backbone)
            del backbone, velocity
            free_memory(source.device)
            latents["merged"] = _rounded_student(source, written, gate_inputs)
    return exported


def _conditioning(source: Source) -> Conditioning:
    """Of the example's prompt and of the empty one, by the text encoders alone."""
    return load_backbone(
        source.model, text=True, vae=False, bases="none", device=source.device, root=source.root
    ).encode([source.prompt, ""])


def _exact(model: ModelParams) -> ModelParams:
    return model.model_copy(update={"dtype": "float32"})


def _write_whole(source: Source, base: BaseModel, adapter: Adapter | None, output_path: OutputPath) -> Weights:
    """Write the transformer's weights with the student in them, in the published dtype, and return the file's; of the
    base's own weights one tensor at a time is read."""
    plain = base_weights(base.folder, source.model.key)
    dtype = DTYPES[source.model.dtype]
    if adapter is not None:
        weights = merged_weights(plain, adapter, dtype)
    elif source.full is not None:
        weights = full_weights(source.full, plain, dtype)
    else:
        raise ValueError("a student without adapters needs its weights")
    report_lost_export(plain, weights, source.model.dtype)
    output_path(CONFIG)
    write_merged(weights, base.transformer_config, output_path(MERGED).parent.parent, source.metadata)
    return open_tensors(output_path(MERGED))[0]


def _rounded_student(source: Source, weights: Weights, gate_inputs: GateInputs) -> dict[str, Tensor]:
    """What the merged weights give in memory: below float32 their cast moves every one of them a little, so what the
    file gives is compared with that, and the weights themselves with the base's and PEFT's adapters (`check_merged`).
    """
    backbone = load_backbone(_exact(source.model), vae=False, device=source.device, root=source.root)
    return student_latents(whole_student(backbone, weights), gate_inputs, source.model.eta)


@torch.no_grad()
def _draw_example(
    source: Source, backbone: Backbone, velocity: Velocity, cond: Conditioning, sigmas: Tensor, path: Path
) -> None:
    """The example's picture: a few images of the prompt by the trained sampler."""
    noise = ImageNoise(source.seed, [(0, i) for i in range(PICTURES)], backbone.latent_shape(), backbone.device)
    latents = sample(velocity, noise, cond.index([0]).expand(PICTURES), sigmas, source.model.eta)
    scale = max(1, MIN_SIDE // source.model.resolution)
    save_png(path, grid(backbone.decode(latents).cpu(), columns=PICTURES // 2, scale=scale))


def finish(
    source: Source, exported: ExportedWeights, output_path: OutputPath, card_context: Mapping[str, Any]
) -> dict[str, Any]:
    """Write scheduler and card, put the folder through the gate, write its record; RtdmdError when it is refused.

    told: the card's settings, settings_sha256, metrics, datasets and sources. Every other file of the folder is there.
    """
    stochastic = source.model.eta >= RENOISE_FROM
    own = exported.scheduler
    config = {**own, "stochastic_sampling": stochastic} if own else scheduler_config(exported.sigmas, stochastic)
    write_json(output_path(SCHEDULER), config)
    found = Published(
        model=source.model,
        base=exported.base,
        sigmas=exported.sigmas,
        stochastic=stochastic,
        forms=source.forms,
        rank=exported.adapter.rank if exported.adapter is not None else None,
        prompt=source.prompt,
        folder=source.called,
        **card_context,
    )
    write_atomic(output_path(CARD), model_card(found))
    record = put_through(source, exported, output_path(CARD).parent, source.called)
    write_json(output_path(GATE), record)
    return record


def put_through(source: Source, exported: ExportedWeights, folder: Path, called: str) -> dict[str, Any]:
    """The gate's record of a folder that should hold this student; RtdmdError when it is refused. called: its name."""
    export = Export(
        folder=folder,
        called=called,
        model=source.model,
        base=exported.base,
        forms=source.forms,
        stages=source.stacked(),
        threads=source.threads,
        device=str(source.device),
    )
    free_memory(source.device)  # the gate's process needs the memory that is no longer used here
    return run_gate(export, exported.gate_inputs, exported.latents)
