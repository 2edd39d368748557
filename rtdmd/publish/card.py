"""The model card (README.md): what the Hub reads from it, and the text of card.md, a template whose Python the
gate runs as it is printed.

Everything on it comes from the stage's inputs, so the same inputs give the same card; the commit of the code is known
at upload only.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, StrictUndefined

from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.common.escape import code_span, markdown, python_string
from rtdmd.config import ModelParams
from rtdmd.evaluate.names import LABELS, SCORES, STUDENT, TAGS, first_suite, in_order, score_label, score_title
from rtdmd.evaluate.names import suites_of as suites_in
from rtdmd.publish import scheduler_cps
from rtdmd.publish.base import BaseModel

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
CARD = "README.md"
SAMPLES = "samples.png"
WIDGET = "widget.png"
WORLD = "data/world/"  # the embedded world belongs to this repository and carries its licence
PLUS_MINUS = "\u00a0±\u00a0"  # a figure and its interval stay on one line
MADE_OF = {"world_verifier": ("strict", "lenient", "soft")}  # figures that a reward is made of
FEATURES = {"frechet": "Fréchet distance (lower is nearer)", "diversity": "Diversity (1: as real images)"}
TARGETS = {
    "attention": "the attention projections",
    "attention_mlp": "attention projections and MLPs",
    "all": "all linear layers",
}  # adapter.targets, as the recipe says it
Metrics = Mapping[str, Any]
Rows = list[list[str]]


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
        """The card's heading: the base's name without its owner or path, and what was made of it."""
        name = self.model.teacher.split("/")[-1] if self.model.is_hub_id else Path(self.model.teacher).name
        base = "Embedded world" if self.model.teacher.startswith(WORLD) else name
        return f"{base}, {self.model.num_steps} steps, RTDMD"

    def trained_on(self, score: str) -> bool:
        """Whether a score was a training reward, or a figure that such a reward is made of."""
        return score in self.rewards or any(score in MADE_OF.get(reward, ()) for reward in self.rewards)


def model_card(found: Published) -> str:
    """README.md as a whole."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "markdown": markdown,
        "code": code_span,
        "python": python_string,
        "g": lambda number: f"{number:g}",
    }
    forms = {
        "lora": f"a LoRA adapter (rank {found.rank}, `{PUBLISHED}`)",
        "merged": "the whole transformer (`transformer/`)",
    }
    template = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    judged = f"{code_span(found.teacher)}, with whose text encoders and VAE it was trained and judged,"
    text = environment.from_string(template).render(
        teacher="the multi-step model" if found.teacher is None else judged,
        found=found,
        model=found.model,
        base=found.base,
        settings=found.settings,
        scheduler="FlowMatchEulerDiscreteScheduler",
        weights=PUBLISHED,
        samples=SAMPLES,
        widget=WIDGET,
        forms=[forms[form] for form in found.forms],
        levels=", ".join(f"{sigma:g}" for sigma in found.sigmas),
        schedulers=_schedulers(found),
        cps_source=cps_source(),
        suites=[_suite(found, name, own) for name, own in suites_in(found.metrics).items()],
        targets=TARGETS[found.settings["adapter"]["targets"]] if found.settings else "",
        of_the_world=found.model.teacher.startswith(WORLD),
    )
    return str(ModelCard(f"---\n{_metadata(found).to_yaml()}\n---\n\n{text}\n"))


def cps_source() -> str:
    """The scheduler of the trained sampler as Python that stands alone: its module, without the docstring."""
    return inspect.getsource(scheduler_cps).partition('"""\n\n')[2].rstrip()


def _schedulers(found: Published) -> Rows:
    """What each scheduler gives: how much noise it draws anew, its score, and how far that is from the trained one."""
    eta = found.model.eta
    own = 1.0 if found.stochastic else 0.0
    texts = [(f"`CPSScheduler`, below (`pipe.scheduler.eta = {eta:g}`)", eta)] if eta not in (0.0, 1.0) else []
    texts += [("the folder's own, as above", own), (f"the same with `stochastic_sampling={own == 0}`", 1.0 - own)]
    metrics = first_suite(found.metrics)
    name = next(iter(_score_names(metrics)), None)
    head = [
        "Scheduler",
        "Noise drawn anew at each step (η)",
        f"{markdown(score_title(name)) if name else 'Score'}, held-out prompts",
        "Minus as trained, same prompts and noise",
    ]
    rows = [head]
    for text, level in texts:
        score = "not scored"
        minus_trained = ""
        other = metrics.get("etas", {}).get(f"{level:g}")
        if name is not None and level == eta:
            score = _figure(metrics[STUDENT][name])
        elif name is not None and other is not None:
            score = _figure(other[name])
            minus_trained = _figure(other["minus_trained"][name], sign="+")
        rows.append([text, f"{level:g}, as trained" if level == eta else f"{level:g}", score, minus_trained])
    return rows


def _suite(found: Published, suite: str, metrics: Metrics) -> dict[str, Any]:
    """What was measured on one suite, for the template: scores that were trained on apart from all others."""
    names = _score_names(metrics)
    trained = [name for name in names if found.trained_on(name)]
    held_out = [name for name in names if name not in trained]
    held_out += [name for name in FEATURES if metrics[STUDENT].get(name) is not None]
    trained_size = metrics["trained_resolution"]
    height, width = found.model.size
    size = f"{height} x {width} pixels"
    if metrics["resolution"] != trained_size:
        size = f"{metrics['resolution']} x {metrics['resolution']} pixels (trained at {trained_size})"
    return {
        "name": suite,
        "images": metrics[STUDENT]["images"],
        "prompts": metrics["prompts"],
        "size": size,
        "trained": _table(metrics, trained) if trained else [],
        "held_out": _table(metrics, held_out) if held_out else [],
        "by_tag": _by_tag(metrics, names[0]),
    }


def _models(metrics: Metrics) -> list[str]:
    return [name for name in LABELS if name in metrics and name != "reference"]


def _table(metrics: Metrics, names: Sequence[str]) -> Rows:
    rows = [["Model", "Network evaluations", *(FEATURES.get(name, markdown(score_label(name))) for name in names)]]
    for model in _models(metrics):
        own = metrics[model]
        rows.append([LABELS[model], str(own["network_evaluations"]), *(_figure(own.get(name)) for name in names)])
    return rows


def _by_tag(metrics: Metrics, name: str) -> Rows:
    tags = in_order(metrics[STUDENT]["per_tag"][name], TAGS)
    rows = [[f"{markdown(score_title(name))} by tag", *(markdown(tag.replace("_", " ")) for tag in tags)]]
    for model in _models(metrics):
        rows.append([LABELS[model], *(_figure(metrics[model]["per_tag"][name][tag]) for tag in tags)])
    return rows


def _score_names(suite: Metrics) -> list[str]:
    """Scores of the published student on a suite, in their usual order."""
    return in_order(suite[STUDENT]["per_tag"], list(SCORES)) if suite else []


def _figure(value: Mapping[str, float | None] | float | None, sign: str = "") -> str:
    """A score with its interval, a plain number, or a dash; ``sign`` "+" shows the sign of a difference."""
    if isinstance(value, Mapping):
        return f"{value['mean']:{sign}.3f}" + ("" if value["ci95"] is None else f"{PLUS_MINUS}{value['ci95']:.3f}")
    return "–" if value is None else f"{value:{sign}.3f}"


def _metadata(found: Published) -> ModelCardData:
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
        tags=["diffusers", "text-to-image", "few-step", "distillation", "rtdmd", model.family, *["lora"] * adapter],
        datasets=list(found.datasets) or None,
        model_name=found.title if results else None,
        eval_results=results or None,
        base_model=model.teacher if hub else None,
        base_model_relation=("adapter" if adapter else "finetune") if hub else None,
        widget=[{"text": found.prompt, "output": {"url": WIDGET}}],
    )


def licence_of(model: ModelParams) -> tuple[str, str | None]:
    """(licence, its name where the licence is "other"): what is made from a model inherits its licence."""
    if model.teacher.startswith(WORLD):
        return "apache-2.0", None
    unknown = ("other", "licence-of-the-base-model")
    return BASE_LICENCES.get(model.teacher, unknown) if model.is_hub_id else unknown


def eval_results(found: Published) -> list[EvalResult]:
    """The student's figures for the Hub's model-index, suite by suite: scores that were training rewards apart from the
    others."""
    results = []
    for suite, metrics in suites_in(found.metrics).items():
        student = metrics[STUDENT]
        for name in [*_score_names(metrics), *(name for name in FEATURES if student.get(name) is not None)]:
            score = student[name] if isinstance(student[name], Mapping) else {"mean": student[name], "ci95": None}
            trained = found.trained_on(name)
            half = score["ci95"]
            interval = f" ± {half:.3f} (95 %)" if half is not None else ""
            label = SCORES.get(name) or FEATURES.get(name) or name
            result = EvalResult(
                task_type="text-to-image",
                dataset_type=f"held-out-prompts-{suite}",
                dataset_name=f"Held-out prompts ({suite}), {'training rewards' if trained else 'held-out rewards'}",
                dataset_config="training-rewards" if trained else "held-out-rewards",
                metric_type=name,
                metric_name=f"{label}{interval}, {student['images']} images",
                metric_value=score["mean"],
                metric_args=({} if half is None else {"ci95": half}) | {"images": student["images"]},
            )
            results.append(result)
    return results
