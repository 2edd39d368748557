"""What the Hub reads from the model card: metadata, licence, and the figures of the model-index.

Everything on it comes from the stage's inputs, so the same inputs give the same card; the commit of the code is known
at upload only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rtdmd.config import ModelParams
from rtdmd.evaluate.names import SCORES, STUDENT, in_order, suites_of
from rtdmd.publish.export import BaseModel

STABILITY = ("other", "stabilityai-ai-community")
BASE_LICENCES: dict[str, tuple[str, str | None]] = {  # as their owners state them
    "stabilityai/stable-diffusion-3-medium-diffusers": STABILITY,
    "stabilityai/stable-diffusion-3.5-medium": STABILITY,
    "black-forest-labs/FLUX.1-dev": ("other", "flux-1-dev-non-commercial-license"),
    "black-forest-labs/FLUX.2-klein-base-4B": ("apache-2.0", None),
    "black-forest-labs/FLUX.2-klein-base-9B": ("other", "flux-non-commercial-license"),
    "black-forest-labs/FLUX.2-klein-4B": ("apache-2.0", None),
    "black-forest-labs/FLUX.2-klein-9B": ("other", "flux-non-commercial-license"),
}
SAMPLES = "samples.png"
WIDGET = "widget.png"
WORLD = "data/world/"  # the embedded world belongs to this repository and carries its licence
PLUS_MINUS = "\u00a0±\u00a0"  # a figure and its interval stay on one line
Metrics = Mapping[str, Any]

MADE_OF = {"world_verifier": ("strict", "lenient", "soft")}  # figures that a reward is made of
FEATURES = {"frechet": "Fréchet distance (lower is nearer)", "diversity": "Diversity (1: as real images)"}


@dataclass(frozen=True)
class Published:
    """What the card tells about the export."""

    model: ModelParams  # on the student's base
    base: BaseModel
    sigmas: Sequence[float]  # trained levels, K + 1, ending in 0
    stochastic: bool  # the folder's scheduler draws all noise anew (CPS with eta = 1), else takes Euler steps
    forms: Sequence[str]  # "lora", "merged"
    rank: int | None  # of the adapter; None where only merged weights are published
    prompt: str  # example
    folder: str  # what the snippets call the folder: its path, or the repository's id
    settings: Mapping[str, Any]  # params sections of the stages behind it; empty for an import
    metrics: Metrics  # metrics.json; empty where nothing was evaluated
    settings_sha256: str
    datasets: Sequence[str] = ()
    sources: Mapping[str, str] | None = None  # imported checkpoints: file name -> SHA-256

    @property
    def rewards(self) -> list[str]:
        """Names of the training rewards."""
        return [reward["name"] for reward in self.settings.get("train_rtdmd", {}).get("rewards", [])]

    @property
    def teacher(self) -> str | None:
        """The teacher's base, where the student stands on another one."""
        model = self.settings.get("model", {})
        return model["teacher"] if model.get("student") else None

    @property
    def title(self) -> str:
        """The card's heading."""
        return f"{base_name(self.model)}, {self.model.num_steps} steps, RTDMD"


def card_data(found: Published) -> ModelCardData:
    """The card's metadata. base_model is left out for a local base: the Hub knows repositories only."""
    model = found.model
    licence, licence_name = licence_of(model)
    hub = model.is_hub_id
    adapter = "lora" in found.forms
    results = eval_results(found)
    return ModelCardData(
        license=licence,
        license_name=licence_name,
        license_link=f"https://huggingface.co/{model.teacher}" if hub and licence == "other" else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*("diffusers", "text-to-image", "few-step", "distillation", "rtdmd"), model.family, *["lora"] * adapter],
        datasets=list(found.datasets) or None,
        model_name=found.title if results else None,
        eval_results=results or None,
        base_model=model.teacher if hub else None,
        base_model_relation=("adapter" if adapter else "finetune") if hub else None,
        widget=[{"text": found.prompt, "output": {"url": WIDGET}}],
    )


def licence_of(model: ModelParams) -> tuple[str, str | None]:
    """(licence, its name where the licence is "other"): what is made from a model inherits its licence."""
    if model.is_hub_id:
        return BASE_LICENCES.get(model.teacher, ("other", "licence-of-the-base-model"))
    if model.teacher.startswith(WORLD):
        return "apache-2.0", None
    return "other", "licence-of-the-base-model"


def base_name(model: ModelParams) -> str:
    """The base's name without its owner or path."""
    if model.teacher.startswith(WORLD):
        return "Embedded world"
    return model.teacher.split("/")[-1] if model.is_hub_id else Path(model.teacher).name


def trained_on(name: str, rewards: Sequence[str]) -> bool:
    """Whether a score was a training reward, or a figure that such a reward is made of."""
    return name in rewards or any(name in MADE_OF.get(reward, ()) for reward in rewards)


def score_names(suite: Metrics) -> list[str]:
    """Scores of the published student on a suite, in their usual order."""
    return in_order(suite[STUDENT]["per_tag"], list(SCORES)) if suite else []


def figure(value: Mapping[str, float | None] | float | None, sign: str = "") -> str:
    """A score with its interval, a plain number, or a dash; ``sign`` "+" shows the sign of a difference."""
    if isinstance(value, Mapping):
        return f"{value['mean']:{sign}.3f}" + ("" if value["ci95"] is None else f"{PLUS_MINUS}{value['ci95']:.3f}")
    return "–" if value is None else f"{value:{sign}.3f}"


def eval_results(found: Published) -> list[EvalResult]:
    """The student's figures for the Hub's model-index, suite by suite: scores that were training rewards apart from the
    others."""
    results = []
    for suite, metrics in suites_of(found.metrics).items():
        student = metrics[STUDENT]
        for name in score_names(metrics):
            value = student[name]["mean"]
            half = student[name]["ci95"]
            trained = trained_on(name, found.rewards)
            results.append(_result(suite, name, (value, half), student["images"], trained))
        results += [
            _result(suite, name, (student[name], None), student["images"], trained=False)
            for name in FEATURES
            if student.get(name) is not None
        ]
    return results


def _result(suite: str, name: str, value: tuple[float, float | None], images: int, trained: bool) -> EvalResult:
    label = SCORES.get(name) or FEATURES.get(name) or name
    mean, half = value
    interval = f" ± {half:.3f} (95 %)" if half is not None else ""
    return EvalResult(
        task_type="text-to-image",
        dataset_type=f"held-out-prompts-{suite}",
        dataset_name=f"Held-out prompts ({suite}), {'training rewards' if trained else 'held-out rewards'}",
        dataset_config="training-rewards" if trained else "held-out-rewards",
        metric_type=name,
        metric_name=f"{label}{interval}, {images} images",
        metric_value=mean,
        metric_args={"ci95": half, "images": images} if half is not None else {"images": images},
    )
