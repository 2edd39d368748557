"""The model card (README.md): what the folder is, how to run it, what it scores, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.config import ModelParams
from rtdmd.evaluate.names import LABELS, SCORES, TAGS, in_order, score_label, score_title

STABILITY = ("other", "stabilityai-ai-community")
BASE_LICENCES = {
    "stabilityai/stable-diffusion-3-medium-diffusers": STABILITY,
    "stabilityai/stable-diffusion-3.5-medium": STABILITY,
}
SAMPLES = "samples.png"
WORLD = "data/world/"  # the embedded world belongs to this repository and carries its licence
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """What the card tells about the export."""

    model: ModelParams
    sigmas: Sequence[float]  # trained levels, K + 1, ending in 0
    stochastic: bool  # the scheduler re-noises (CPS with eta = 1), else Euler
    absent: Sequence[str]  # text parts that the teacher's pipeline does not have; diffusers wants them named
    rank: int
    metrics: Metrics
    provenance: Mapping[str, Any]


def model_card(found: Published) -> str:
    """README.md: metadata for the Hub, then the text."""
    model = found.model
    title = f"{_base_name(model)}, {model.num_steps} steps, RTDMD"
    body = "\n".join(
        [
            f"# {title}",
            "",
            f"A LoRA adapter (rank {found.rank}) that makes `{model.teacher}` draw in {model.num_steps} steps without"
            " guidance. It was distilled from the multi-step model by ambient-consistent distribution matching (AC-DMD)"
            " and then reinforced by reward-tilted distribution matching (RTDMD); both stages are in the one adapter.",
            "",
            f"![Held-out prompts, the same noise for every model]({SAMPLES})",
            "",
            *_use(found),
            *_results(found),
            *_recipe(found),
            *_provenance(found),
        ]
    )
    return str(ModelCard(f"---\n{card_data(found, title).to_yaml()}\n---\n\n{body}"))


def card_data(found: Published, title: str) -> ModelCardData:
    """The card's metadata. base_model is left out for a local teacher: the Hub knows repositories only."""
    model = found.model
    licence, licence_name = licence_of(model)
    hub = model.is_hub_id
    return ModelCardData(
        license=licence,
        license_name=licence_name,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["diffusers", "lora", "text-to-image", "few-step", "distillation", "rtdmd", model.family],
        model_name=title,
        eval_results=_eval_results(found.metrics),
        base_model=model.teacher if hub else None,
        base_model_relation="adapter" if hub else None,
    )


def licence_of(model: ModelParams) -> tuple[str, str | None]:
    """(licence, its name where the licence is "other"): an adapter inherits its base model's."""
    if model.is_hub_id:
        return BASE_LICENCES.get(model.teacher, ("other", "licence-of-the-base-model"))
    if model.teacher.startswith(WORLD):
        return "apache-2.0", None
    return "other", "licence-of-the-base-model"


def _base_name(model: ModelParams) -> str:
    return model.teacher.split("/")[-1] if model.is_hub_id else Path(model.teacher).name


def _eval_results(metrics: Metrics) -> list[EvalResult]:
    """The stage-two scores for the Hub's model-index."""
    student = metrics["train_rtdmd"]
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type="held-out-prompts",
            dataset_name="Held-out prompts",
            metric_type=name,
            metric_name=f"{score_label(name)} ({student['images']} images)",
            metric_value=student[name]["mean"],
        )
        for name in in_order(student["per_tag"], list(SCORES))
    ]


def snippet(found: Published) -> str:
    """The Python lines that load and sample the model with plain diffusers."""
    model = found.model
    options = [f'revision="{model.revision}"'] if model.revision else []
    options += [f"dtype=torch.{model.dtype}", *(f"{part}=None" for part in found.absent)]
    return f"""import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

folder = "results/publish"  # this folder, or this repository's id
pipe = StableDiffusion3Pipeline.from_pretrained("{model.teacher}", {", ".join(options)})
pipe.load_lora_weights(folder, weight_name="{PUBLISHED}")
pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
image = pipe(
    "a photo of a red circle and a blue square",
    num_inference_steps={model.num_steps},
    guidance_scale=1.0,
    height={model.resolution},
    width={model.resolution},
    max_sequence_length={model.max_sequence_length},
    generator=torch.Generator().manual_seed(0),
).images[0]
image.save("sample.png")"""


def _use(found: Published) -> list[str]:
    model = found.model
    levels = ", ".join(f"{sigma:g}" for sigma in found.sigmas)
    how = "re-noises at each step (CPS with η = 1)" if found.stochastic else "takes Euler steps (CPS with η = 0)"
    other = (
        "stochastic_sampling=False` it takes Euler steps"
        if found.stochastic
        else "stochastic_sampling=True` it re-noises"
    )
    return [
        "## Use",
        "",
        f"```python\n{snippet(found)}\n```",
        "",
        f"The model was trained at the levels σ = {levels} and at no others. The folder's scheduler runs exactly these"
        f" for `num_inference_steps={model.num_steps}`: keep that number, pass no `sigmas` (they would be shifted"
        " again), and do not use the base model's own scheduler. Guidance must be off (`guidance_scale=1.0`).",
        "",
        f"Training and the scores below sample with CPS at η = {model.eta:g}; the folder's scheduler {how}, the nearest"
        f" that plain diffusers offers. With `{other}.",
        "",
    ]


def _results(found: Published) -> list[str]:
    metrics = found.metrics
    models = [name for name in LABELS if name in metrics and name != "reference"]
    names = in_order(metrics["train_rtdmd"]["per_tag"], list(SCORES))
    first = names[0]
    tags = in_order(metrics["train_rtdmd"]["per_tag"][first], TAGS)
    table = [["Model", "Network evaluations", *(score_label(name) for name in names)]]
    table += [[LABELS[m], str(metrics[m]["network_evaluations"]), *(_pm(metrics[m][n]) for n in names)] for m in models]
    by_tag = [[f"{score_title(first)} by tag", *(tag.replace("_", " ") for tag in tags)]]
    by_tag += [[LABELS[m], *(_pm(metrics[m]["per_tag"][first][tag]) for tag in tags)] for m in models]
    rewards = ", ".join(reward["name"] for reward in found.provenance["settings"]["train_rtdmd"]["rewards"])
    return [
        "## Results",
        "",
        f"{metrics['train_rtdmd']['images']} images of each model for held-out prompts, the same prompts and noise for"
        f" all; ± is a 95 % interval over noise. Training used as rewards: {rewards}; expect less elsewhere.",
        "",
        *_markdown(table),
        "",
        *_markdown(by_tag),
        "",
    ]


def _pm(value: Mapping[str, float | None]) -> str:
    return f"{value['mean']:.3f}" + ("" if value["ci95"] is None else f" ± {value['ci95']:.3f}")


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _recipe(found: Published) -> list[str]:
    settings = found.provenance["settings"]
    one, two = settings["train_acdmd"], settings["train_rtdmd"]
    rows = [
        ["Setting", "Value"],
        ["Teacher guidance", f"{found.model.guidance:g}"],
        ["Stage one", f"{one['iterations']} iterations of {one['batch_size']} images"],
        ["Stage one, generator updates", f"every {one['generator_every']} iterations"],
        ["Stage one, rates", _rates(one)],
        ["Stage two", f"{two['epochs']} epochs of {two['prompts_per_epoch']} prompts x {two['group_size']} images"],
        ["Stage two, rates", _rates(two)],
        ["Seed", str(settings["run"]["seed"])],
    ]
    return ["## Recipe", "", *_markdown(rows), "", "All settings are in `provenance.json`.", ""]


def _rates(stage: Mapping[str, Any]) -> str:
    return f"generator {stage['lr_generator']:g}, fake score {stage['lr_fake']:g}, EMA {stage['ema_decay']:g}"


def _provenance(found: Published) -> list[str]:
    commit = found.provenance["git_commit"] or "unknown (made outside a Git checkout)"
    return [
        "## Provenance",
        "",
        f"Code: commit `{commit}`. Hash of the settings: `{found.provenance['settings_sha256']}`. `provenance.json`"
        " holds the settings, the SHA-256 of every input and the package versions.",
        "",
    ]
