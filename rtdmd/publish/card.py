"""The model card (README.md): metadata for the Hub, then what it is, use, results, recipe, limits, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCard

from rtdmd.common.escape import code_span, markdown
from rtdmd.evaluate.names import LABELS, STUDENT, TAGS, in_order, score_label, score_title, suites_of
from rtdmd.publish.card_data import (
    FEATURES,
    SAMPLES,
    WIDGET,
    WORLD,
    Published,
    card_data,
    figure,
    score_names,
    trained_on,
)
from rtdmd.publish.card_use import use

TARGETS = {
    "attention": "the attention projections",
    "attention_mlp": "attention projections and MLPs",
    "all": "all linear layers",
}  # adapter.targets, as the recipe says it


def model_card(found: Published) -> str:
    """README.md as a whole."""
    return str(ModelCard(f"---\n{card_data(found).to_yaml()}\n---\n\n{card_text(found)}"))


def card_text(found: Published) -> str:
    """Everything under the metadata, in Markdown."""
    picture = (
        f"![Held-out prompts, the same noise for every model]({SAMPLES})"
        if found.metrics
        else f"![{markdown(found.prompt)}]({WIDGET})"
    )
    lines = [f"# {markdown(found.title)}", "", _what(found), "", picture, "", *use(found)]
    lines += _results(found) if found.metrics else ["## Results", "", "Not evaluated here.", ""]
    lines += _recipe(found) if found.settings else _sources(found)
    return "\n".join([*lines, *_limits(found), *_provenance(found)])


def _what(found: Published) -> str:
    model = found.model
    forms = {
        "lora": f"a LoRA adapter (rank {found.rank}, `pytorch_lora_weights.safetensors`)",
        "merged": "the whole transformer (`transformer/`)",
    }
    teacher = "the multi-step model"
    if found.teacher is not None:
        teacher = f"{code_span(found.teacher)}, with whose text encoders and VAE it was trained and judged,"
    return (
        f"{code_span(model.teacher)} trained to sample in {model.num_steps} steps without guidance, as"
        f" {' and as '.join(forms[form] for form in found.forms)}. It was distilled from {teacher} by"
        " ambient-consistent distribution matching (AC-DMD) and then reinforced by reward-tilted distribution matching"
        " (RTDMD, [arXiv 2605.26108](https://arxiv.org/abs/2605.26108)); the weights hold both stages."
    )


def _results(found: Published) -> list[str]:
    lines = [
        "## Results",
        "",
        "The same prompts and noise for all models;"
        f" the students sampled with CPS at η = {found.model.eta:g}, the teacher in guided Euler steps. ± is a"
        " 95 % interval over noise.",
        "",
    ]
    for name, own in suites_of(found.metrics).items():
        lines += _suite(found, name, own)
    return lines


def _suite(found: Published, suite: str, metrics: Mapping[str, Any]) -> list[str]:
    """What was measured on one suite."""
    rewards = found.rewards
    names = score_names(metrics)
    trained = [name for name in names if trained_on(name, rewards)]
    other = [name for name in names if name not in trained]
    features = [name for name in FEATURES if metrics[STUDENT].get(name) is not None]
    own = metrics["resolution"] == metrics["trained_resolution"]
    height, width = found.model.size if own else (metrics["resolution"], metrics["resolution"])
    size = f"{height} x {width} pixels"
    if not own:
        size += f" (trained at {metrics['trained_resolution']})"
    lines = [
        f"### {markdown(suite)}",
        "",
        f"{metrics[STUDENT]['images']} images of each model for {metrics['prompts']} held-out prompts, {size}.",
        "",
    ]
    if trained:
        lines += [
            f"Training rewards ({', '.join(map(markdown, rewards))}) and what they are made of. These were optimised:"
            " expect less by any other measure.",
            "",
            *_markdown(_table(metrics, trained)),
            "",
        ]
    if other or features:
        lines += ["Held-out: never a training reward.", "", *_markdown(_table(metrics, [*other, *features])), ""]
    return [*lines, *_markdown(_by_tag(metrics, names[0])), ""]


def _models(metrics: Mapping[str, Any]) -> list[str]:
    return [name for name in LABELS if name in metrics and name != "reference"]


def _table(metrics: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    head = ["Model", "Network evaluations", *(FEATURES.get(name, markdown(score_label(name))) for name in names)]
    table = [head]
    for model in _models(metrics):
        own = metrics[model]
        table.append([LABELS[model], str(own["network_evaluations"]), *(figure(own.get(name)) for name in names)])
    return table


def _by_tag(metrics: Mapping[str, Any], name: str) -> list[list[str]]:
    tags = in_order(metrics[STUDENT]["per_tag"][name], TAGS)
    head = [f"{markdown(score_title(name))} by tag", *(markdown(tag.replace("_", " ")) for tag in tags)]
    table = [head]
    for model in _models(metrics):
        found = metrics[model]["per_tag"][name]
        table.append([LABELS[model], *(figure(found[tag]) for tag in tags)])
    return table


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _recipe(found: Published) -> list[str]:
    settings = found.settings
    one = settings["train_acdmd"]
    two = settings["train_rtdmd"]
    adapter = settings["adapter"]
    trained = (
        f"LoRA of rank {adapter['rank']}, alpha {adapter['alpha']}, on {TARGETS[adapter['targets']]} in each stage"
    )
    rows = [
        ["Setting", "Value"],
        ["Trained weights", trained if adapter["mode"] == "lora" else "all"],
        *([["Teacher", code_span(found.teacher)]] if found.teacher is not None else []),
        ["Teacher guidance", f"{settings['model']['guidance']:g}"],
        ["Sampler", f"{found.model.num_steps} steps, CPS with η = {found.model.eta:g}"],
        *(_stage_one(one) if one["iterations"] else [["Stage one", "none: stage two starts from the base as it is"]]),
        ["Stage two", f"{two['epochs']} epochs of {two['prompts_per_epoch']} prompts x {two['group_size']} images"],
        ["Stage two, rates", _rates(two)],
        [
            "Stage two, rewards",
            ", ".join(f"{markdown(reward['name'])} x {reward['weight']:g}" for reward in two["rewards"]),
        ],
        ["Seed", str(settings["run.seed"])],
    ]
    return ["## Recipe", "", *_markdown(rows), "", "All settings are in `provenance.json`.", ""]


def _stage_one(one: Mapping[str, Any]) -> list[list[str]]:
    return [
        ["Stage one", f"{one['iterations']} iterations of {one['batch_size']} images"],
        ["Stage one, generator updates", f"every {one['generator_every']} iterations"],
        ["Stage one, rates", _rates(one)],
    ]


def _rates(stage: Mapping[str, Any]) -> str:
    generator, fake = (stage[f"{role}_optimizer"]["lr"] for role in ("generator", "fake"))
    return f"generator {generator:g}, fake score {fake:g}, EMA {stage['ema_decay']:g}"


def _sources(found: Published) -> list[str]:
    rows = [
        ["Checkpoint, in order", "SHA-256"],
        *([markdown(name), f"`{digest}`"] for name, digest in (found.sources or {}).items()),
    ]
    return ["## Recipe", "", "Imported checkpoints, composed:", "", *_markdown(rows), ""]


def _limits(found: Published) -> list[str]:
    world = found.model.teacher.startswith(WORLD)
    about = (
        "- The base is the embedded world of the repository: pictures of coloured shapes, nothing else."
        if world
        else "- What the base model cannot draw, or draws with a bias, this model does too."
    )
    return [
        "## Limits",
        "",
        about,
        f"- {found.model.num_steps} steps at {found.model.size_text} pixels, without guidance. Other step counts,"
        " sizes and guidance weights were not trained.",
        "- It was tuned towards its training rewards; a better score is not always a better picture.",
        "",
    ]


def _provenance(found: Published) -> list[str]:
    return [
        "## Provenance",
        "",
        f"Hash of the settings: `{found.settings_sha256}`. `provenance.json` holds the settings, the SHA-256 of every"
        " input and the package versions; `gate.json` what the folder was tested for, and the SHA-256 of what passed.",
        "",
    ]
