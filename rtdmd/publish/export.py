"""One export from its parts to the gate: weights, scheduler, card, and the test that they must pass.

Stage publish and `rtdmd import` write the same folder; they differ in where the student comes from.
``output_path(name)`` says where a file of the folder is written; nothing here decides what becomes of the folder.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
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
from rtdmd.common.torch_setup import DTYPES, configure, free_memory
from rtdmd.config import Params
from rtdmd.pipeline.declared import FORMS
from rtdmd.publish.adapter import Adapter, check_belongs, compose, read_adapter, write_lora
from rtdmd.publish.base import BaseModel, base_model, pipeline_class
from rtdmd.publish.card import CARD, WIDGET, Published, model_card
from rtdmd.publish.gate import ExportedWeights, Source, make_gate_inputs, run_gate, student_latents, table
from rtdmd.publish.merge import CONFIG, MERGED, Weights, base_weights, full_weights, merged_weights, write_merged
from rtdmd.publish.records import GATE, header_of
from rtdmd.publish.reference import check_merged, whole_student
from rtdmd.publish.scheduler import scheduler_config
from rtdmd.train.adapters import load_student
from rtdmd.train.rounding import report_lost_export

STUDENTS = ("train_acdmd", "train_rtdmd")
WEIGHTS = {name: f"results/{name}/generator.safetensors" for name in STUDENTS}
SCHEDULER = "scheduler/scheduler_config.json"
RENOISE_FROM = 0.5  # trained eta from which diffusers' re-noising (eta = 1) is nearer than its Euler step (eta = 0)
# images of the example, and about how large each is shown
PICTURES = 4
MIN_SIDE = 144

OutputPath = Callable[[str], Path]


def student_source(
    params: Params, root: Path, paths: Mapping[str, Path], forms: tuple[str, ...], metadata: Mapping[str, str]
) -> Source:
    """The stage-two student of a run, as evaluate judges it, on the base that it stands on. paths: stage -> its
    generator.safetensors. UserError where one is missing, or was imported."""
    lora = params.adapter.mode == "lora"
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"{path}: no such file; `snakemake {path.parent.name}` makes it")
        if "imported" in header_of(path)[1]:
            raise UserError(
                f"{path} was imported, not trained here, and the records beside it are another student's; the folder to"
                f" pass on is the one that `rtdmd import` wrote, and `rtdmd {path.parent.name}` trains a student here"
            )
    return Source(
        model=params.model.of_student(),
        forms=forms,
        adapters={name: read_adapter(path) for name, path in paths.items()} if lora else {},
        full=None if lora else paths["train_rtdmd"],
        student=lambda backbone: load_student(params, backbone, "train_rtdmd", root),
        prompt=params.publish.prompt,
        called=params.publish.repo_id or "results/publish",
        threads=params.run.threads,
        seed=params.run.seed,
        metadata=metadata,
        root=root,
        device=configure(params.run),
    )


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
    model = source.model
    exact = model.model_copy(update={"dtype": "float32"})
    where: dict[str, Any] = {"device": source.device, "root": source.root}
    base = base_model(base_folder(model, text=True, root=source.root), model.key)
    if "lora" in source.forms and source.adapters:
        pipeline_class(base.pipeline)  # refused before the images, which take minutes
    cond = load_backbone(model, text=True, vae=False, bases="none", **where).encode([source.prompt, ""])
    free_memory(source.device)
    backbone = load_backbone(model, **where)
    for name, one in source.adapters.items():  # before any adapter wraps the layers
        check_belongs(one, backbone, name)
    sigmas = backbone.sigmas(model.num_steps)
    velocity = source.student(backbone)
    _draw_example(source, backbone, velocity, cond, sigmas, output_path(WIDGET))
    if model.dtype != "float32":  # compared in float32
        del backbone, velocity
        free_memory(source.device)
        backbone = load_backbone(exact, vae=False, **where)
        velocity = source.student(backbone)
    adapter = compose(list(source.adapters.values())) if source.adapters else None
    if "lora" in source.forms and adapter is not None:
        write_lora(adapter, output_path(PUBLISHED), source.metadata, base.pipeline)
    gate_inputs = make_gate_inputs(backbone, model.family, cond, sigmas)
    latents = {"lora": student_latents(velocity, gate_inputs, model.eta)}
    exported = ExportedWeights(base, adapter, sigmas.tolist(), backbone.own_scheduler(), gate_inputs, latents)
    if "merged" in source.forms:
        written = _write_whole(source, base, adapter, output_path)
        latents["merged"] = latents["lora"]
        if model.dtype != "float32":
            # The cast moves every weight a little: what the file gives is compared with the cast weights in memory,
            # and these with the base's and PEFT's adapters.
            if adapter is not None:
                check_merged(written, backbone)
            del backbone, velocity
            free_memory(source.device)
            backbone = load_backbone(exact, vae=False, **where)
            latents["merged"] = student_latents(whole_student(backbone, written), gate_inputs, model.eta)
    return exported


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
    write_merged(weights, base.folder / "transformer/config.json", output_path(MERGED).parent.parent, source.metadata)
    return open_tensors(output_path(MERGED))[0]


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

    card_context: the card's settings, settings_sha256, metrics, datasets and sources. Every other file of the folder is
    there.
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
    free_memory(source.device)  # the gate's process needs the memory that is no longer used here
    record = run_gate(source, exported, output_path(CARD).parent, source.called)
    write_json(output_path(GATE), record)
    return record


def gate_folder(folder: Path, params: Params, root: Path, repo_id: str) -> None:
    """Put a downloaded revision of ``repo_id`` through the gate; RtdmdError with every reason where it does not pass.

    What a repository gives back may be more than the stage's folder: files that were there before, which a loader takes
    instead. params, root: the run whose student it is; UserError where its files are missing.
    """
    forms = check_forms(params.publish.format, params.adapter.mode)
    source = student_source(params, root, {name: root / path for name, path in WEIGHTS.items()}, forms, metadata={})
    with tempfile.TemporaryDirectory() as scratch:

        def output_path(name: str) -> Path:
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            return path

        exported = make_weights(source, output_path)
    free_memory(source.device)
    print(table(run_gate(source, exported, folder, repo_id)["forms"]), file=sys.stderr)
