"""The parts of the report on what was evaluated, and on what it was made of; `over_time` has those on the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from PIL import Image

from rtdmd.evaluate.intervals import Estimate
from rtdmd.evaluate.names import (
    LABELS,
    PAIRS,
    SCORES,
    STUDENT,
    TAGS,
    in_order,
    score_label,
    score_title,
    suites_of,
)
from rtdmd.report import against_teacher, charts
from rtdmd.report.html import Section, cell, details, drawing, picture, plain, section, table
from rtdmd.report.run_path import PathFiles

Metrics = Mapping[str, Any]
FIGURES = {
    "objects": "Objects per image",
    "clutter": "Share of images with clutter",
    "small_share": "Share of 9-pixel objects",
    "color_entropy": "Colour entropy",
    "position_entropy": "Position entropy",
    "background_entropy": "Background entropy",
}

SECTIONS = ("run", "model", "adapter", "train_acdmd", "train_rtdmd", "evaluate")

SHEET = 400_000  # bytes of the contact sheet in the page


def models_of(metrics: Metrics) -> list[str]:
    """The evaluated models, in the order in which people compare them."""
    return [name for name in LABELS if name in metrics and name != "reference"]


def score_names(metrics: Metrics) -> list[str]:
    """The scores of metrics.json; the verifier's reward, a mixture of strict and soft, stands for them only alone."""
    found = in_order(metrics[models_of(metrics)[0]]["per_tag"], list(SCORES))
    return [name for name in found if name != "world_verifier"] or found


def lead(metrics: Metrics) -> str:
    """The result in one sentence a suite."""
    suites = suites_of(metrics)
    return " ".join(_lead(own, "" if len(suites) == 1 else f" of {name}") for name, own in suites.items())


def _lead(metrics: Metrics, where: str) -> str:
    models = models_of(metrics)
    name = score_names(metrics)[0]
    parts = [f"{LABELS[m]} {interval(metrics[m][name])} ({metrics[m]['network_evaluations']})" for m in models]
    head = f"{score_title(name)} on {metrics[models[0]]['images']} held-out images{where} of each model"
    return f"{head} (in brackets: network evaluations per image): {', '.join(parts)}."


def interval(value: Mapping[str, float | None], digits: int = 3) -> str:
    """A mean with its half-width over noise, as text."""
    width = "" if value["ci95"] is None else f" ± {value['ci95']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{width}"


def suite_sections(metrics: Metrics, trained_eta: float, watched: PathFiles | None = None) -> list[Section | None]:
    """All that was measured: where there are several suites, first one table of them side by side, and each part under
    the suite's name. ``watched``: the students on the way through stage two."""
    suites = suites_of(metrics)
    parts: list[Section | None] = [overview(suites)] if len(suites) > 1 else []
    for name, own in suites.items():
        where = name if len(suites) > 1 else ""
        path = watched.path(name, own) if watched is not None and "frontier" in own else []
        parts += [
            results(own, where),
            tags(own, where),
            differences(own, where),
            against_teacher.frontier(own, path, where),
            against_teacher.told(own, where),
            stochasticity(own, trained_eta, where),
            collapse(own, where),
        ]
    return parts


def overview(suites: Mapping[str, Metrics]) -> Section:
    """Every score of every suite, a row per model."""
    columns = [(suite, own, name) for suite, own in suites.items() for name in score_names(own)]
    header = ["Model", *(f"{score_label(name)} ({suite})" for suite, _, name in columns)]
    models = models_of(next(iter(suites.values())))
    rows = []
    for model in models:
        rows.append([LABELS[model], *(cell(own[model][name]) for _, own, name in columns)])
    sizes = [[suite, *map(str, _size(own))] for suite, own in suites.items()]
    body = table(header, rows, ["best" if m == STUDENT else "" for m in models])
    body += table(["Suite", "Prompts", "Images of each model", "Pixels", "Pixels in training"], sizes)
    return section("All suites", _HOW["overview"], body, "suites")


def _size(own: Metrics) -> tuple[int, int, int, int]:
    images = own[models_of(own)[0]]["images"]
    return own["prompts"], images, own["resolution"], own["trained_resolution"]


def _section(title: str, how: str, body: Markup, suite: str) -> Section:
    """A section of one suite; ``suite`` is empty where there is no other."""
    return section(title, _HOW[how], body, how.replace("_", "-"), suite)


def results(metrics: Metrics, suite: str = "") -> Section:
    """The table of all models, real images last."""
    rows = []
    classes = []
    for model in [*models_of(metrics), *(["reference"] if "reference" in metrics else [])]:
        own = metrics[model]
        cost = ["–", "–"] if model == "reference" else [str(own["steps"]), str(own["network_evaluations"])]
        rows.append([LABELS[model], *cost, *_figures(metrics, own)])
        classes.append({"reference": "real", STUDENT: "best"}.get(model, ""))
    header = ["Model", "Steps", "Evaluations", *_figure_names(metrics)]
    body = table(header, rows, classes)
    if metrics["resolution"] != metrics["trained_resolution"]:
        sizes = metrics["resolution"], metrics["trained_resolution"]
        body += Markup("<p>Images of {} pixels; trained at {}.</p>").format(*sizes)
    return _section("Results", "results", body, suite)


def _figure_names(metrics: Metrics) -> list[str]:
    """Heads of the columns that `_figures` fills."""
    extra = {"frechet": "Fréchet ×1000", "diversity": "Diversity"}
    present = [text for key, text in extra.items() if key in metrics[models_of(metrics)[0]]]
    return [*(score_label(name) for name in score_names(metrics)), *present]


def _figures(metrics: Metrics, own: Mapping[str, Any]) -> list[str]:
    """Scores, distance and diversity of one row."""
    frechet = own.get("frechet")
    thousand = None if frechet is None else 1000 * frechet
    extra = {"frechet": plain(thousand, 1), "diversity": plain(own.get("diversity"), 2)}
    present = [text for key, text in extra.items() if key in metrics[models_of(metrics)[0]]]
    return [*(cell(own[name]) for name in score_names(metrics)), *present]


def stochasticity(metrics: Metrics, trained: float, suite: str = "") -> Section | None:
    """The published student at other values of η than the ``trained`` one; None where none was scored."""
    levels = metrics.get("etas", {})
    if not levels:
        return None
    rows = {f"{trained:g}": _figures(metrics, metrics[STUDENT])}
    rows |= {level: _figures(metrics, own) for level, own in levels.items()}
    lines = [[f"η = {level}", *rows[level]] for level in sorted(rows, key=float)]
    classes = ["best" if line[0] == f"η = {trained:g}" else "" for line in lines]
    for level, own in levels.items():
        differences = [_difference(own["minus_trained"][name]) for name in score_names(metrics)]
        lines.append([f"η = {level} minus η = {trained:g}", *differences])
    body = table([LABELS[STUDENT], *_figure_names(metrics)], lines, classes + [""] * len(levels))
    return _section("Stochasticity of the sampler", "stochasticity", body, suite)


def samples(sheet: Path) -> Section:
    """The contact sheet."""
    with Image.open(sheet) as image:
        body = picture(image, "samples of every model for the same prompts", SHEET)
    return section("Samples", _HOW["samples"], body, "samples")


def tags(metrics: Metrics, suite: str = "") -> Section:
    """Chart and table of the first score for each tag."""
    models = models_of(metrics)
    name = score_names(metrics)[0]
    order = in_order(metrics[models[0]]["per_tag"][name], TAGS)
    header = ["Model", *(tag.replace("_", " ") for tag in order)]
    estimates: dict[str, dict[str, Estimate]] = {}
    rows = []
    for model in models:
        found = {tag: metrics[model]["per_tag"][name][tag] for tag in order}
        count = metrics[model]["images"] // len(found)
        estimates[model] = {}
        for tag, value in found.items():
            estimates[model][tag] = Estimate(value["mean"], value["ci95"], value["ci95_prompts"], count)
        rows.append([LABELS[model], *(cell(value) for value in found.values())])
    body = drawing(charts.tag_plot(estimates, LABELS)) + table(header, rows)
    return _section(f"{score_title(name)} by tag", "tags", body, suite)


def differences(metrics: Metrics, suite: str = "") -> Section:
    """Paired differences with both intervals."""
    names = score_names(metrics)
    header = ["Difference", *(score_label(name) for name in names)]
    rows = []
    for first, second in PAIRS:
        values = metrics["paired"].get(f"{first}-{second}")
        if values is None:
            continue
        title = f"{LABELS[first]} − {LABELS[second]}"
        rows.append([title, *(_difference(values[name]) for name in names)])
    return _section("Paired differences", "differences", table(header, rows), suite)


def _difference(value: Mapping[str, float | None]) -> Markup:
    widths = [text for key in ("ci95", "ci95_prompts") if (text := plain(value[key])) != "–"]
    mean = f"{value['mean']:+.3f}".replace("-", "−")
    return Markup("{} <small>± {}</small>").format(mean, " / ".join(widths)) if widths else Markup(mean)


def collapse(metrics: Metrics, suite: str = "") -> Section | None:
    """What the images look like as a whole; None for prompts outside the embedded world."""
    models = [*models_of(metrics), *(["reference"] if "reference" in metrics else [])]
    keys = [key for key in FIGURES if key in metrics[models[0]]]
    if not keys:
        return None
    rows = []
    for model in models:
        rows.append([LABELS[model], *(plain(metrics[model][key]) for key in keys)])
    classes = ["real" if m == "reference" else "" for m in models]
    body = table(["Model", *(FIGURES[key] for key in keys)], rows, classes)
    return _section("What was drawn", "collapse", body, suite)


def settings(resolved: Mapping[str, Mapping[str, Any]]) -> Section:
    """The parameters that each stage ran with, by section; what several stages used is shown once."""
    merged: dict[str, dict[str, Any]] = {}
    for stage in resolved.values():
        for name, value in stage["params"].items():
            part, _, key = name.partition(".")
            merged[part] = merged.get(part, {}) | ({key: value} if key else value)
    body = Markup()
    for name in in_order(merged, SECTIONS):
        text = yaml.safe_dump(merged[name], sort_keys=False, allow_unicode=True).strip()
        body += details(name, Markup("<pre>{}</pre>").format(text))
    return section("Settings", _HOW["settings"], body, "settings")


def provenance(
    resolved: Mapping[str, Mapping[str, Any]], prompts: Mapping[str, Any], facts: Mapping[str, str]
) -> Section:
    """Commit, hashes and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in resolved["evaluate"]["versions"].items())
    in_order = sorted(prompts["sets"].items(), key=lambda item: item[1]["use"] != "training")
    sets = "; ".join(f"{about['prompts']} {about['use']} ({name}: {about['source']})" for name, about in in_order)
    rows = [[name, code(value)] for name, value in facts.items()]
    rows += [["Package versions", versions], ["Prompts", sets]]
    body = table([], rows, kind="wide")
    for stage, values in resolved.items():
        data = {path: digest for path, digest in values["inputs"].items() if not path.startswith("rtdmd/")}
        own = {path: digest for path, digest in values["inputs"].items() if path.startswith("rtdmd/")}
        lines = [[path, code(digest)] for path, digest in {**data, **own}.items()]
        body += details(f"Inputs of {stage}, SHA-256", table([], lines, kind="wide"))
    return section("Provenance", _HOW["provenance"], body, "provenance")


def code(text: str) -> Markup:
    """A text that machines read."""
    return Markup("<code>{}</code>").format(text)


_HOW = {
    "samples": "Read along a row: every model was given the same prompts and the same starting noise, and nothing was"
    " picked by hand; a good image shows exactly what the prompt asks for.",
    "overview": "A suite, in brackets, is a prompt set with the scorers that fit it; ± is a 95 % interval over noise on"
    " its held-out prompts.",
    "results": "Higher is better except for the Fréchet distance; ± is a 95 % interval over noise on these held-out"
    " prompts; strict asks for exactly the objects of the prompt and lenient allows more; the Fréchet distance is"
    " between the CLIP embeddings of a model's images and of real ones, whose own row shows how small it can get;"
    " diversity is the distance among images of one prompt relative to real images (1 = as varied as they, 0 ="
    " collapsed).",
    "stochasticity": "The student was trained at the marked η; diffusers' own scheduler has η = 0 (Euler steps) and"
    " η = 1 (all noise anew) only. Same prompts and starting noise; within its first ± a difference may be chance.",
    "tags": "Each dot is a model's mean over the tag's images with its 95 % interval over noise: dots close to the top"
    " line are right on nearly every image.",
    "differences": "Row minus row over the same prompts and noise: a difference larger than the first ± is beyond"
    " chance on these prompts, larger than the second also for other prompts of the kind.",
    "collapse": "Compare with the last row: a model that collapses leaves the real images' shares first in sizes, then"
    " in colours, places and backgrounds (entropies are relative to uniform, 1 = all equally often).",
    "settings": "The sections of params.yaml that these results were made with; the same file gives the same figures.",
    "provenance": "Which code and which data made this page: equal hashes mean equal inputs, byte for byte.",
}
