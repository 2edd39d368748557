"""The pages' tables of the demo, made of results/evaluate/metrics.json: README, docs/results.md, docs/publishing.md.

`python -m tools.docs --write` (`make docs`) writes them between their marks, `make lint` compares them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

METRICS = Path("results/evaluate/metrics.json")
MODELS = {
    "teacher": "teacher, {steps} guided Euler steps",
    "teacher_few_step": "teacher, {steps} guided Euler steps",
    "train_acdmd": "stage one (AC-DMD), {steps} steps",
    "train_rtdmd": "**stage two (RTDMD)**, {steps} steps",
}
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def results(suite: dict[str, Any]) -> Iterator[str]:
    """The README's table: four columns, and what its figures are."""
    yield "| model | network evaluations | correct images | Fréchet distance x 1000 |"
    yield "|---|---|---|---|"
    for model, label in MODELS.items():
        scores = suite[model]
        correct = _percent(scores["strict"])
        distance = f"{1000 * scores['frechet']:.1f}"
        yield f"| {label.format(**scores)} | {scores['network_evaluations']} | {correct} % | {distance} |"
    gain = _percent(suite["paired"]["train_rtdmd-teacher"]["strict"], "+")
    yield ""
    images = suite["train_rtdmd"]["images"]
    yield f"Each model drew {images} images for held-out captions with the same noise; ± is a 95 % confidence interval."
    yield f"Stage two minus teacher, paired: {gain} percentage points."


def scores_by_tag(suite: dict[str, Any]) -> Iterator[str]:
    """Every model's scores, strict by tag, and the paired differences."""
    tags = " | ".join(tag.replace("_", " ") for tag in TAGS)
    yield f"| model | passes | strict | {tags} | lenient | Fréchet x1000 | diversity |"
    yield "|---" * (6 + len(TAGS)) + "|"
    for model, label in (MODELS | {"reference": "held-out world images"}).items():
        scores = suite[model]
        passes = "" if model == "reference" else scores["network_evaluations"]
        strict = f"{scores['strict']['mean']:.3f}" if model == "reference" else _score(scores["strict"])
        by_tag = " | ".join(f"{scores['per_tag']['strict'][tag]['mean']:.2f}" for tag in TAGS)
        lenient = f"{scores['lenient']['mean']:.3f}"
        distance = f"{1000 * scores['frechet']:.1f}"
        cells = f"{passes} | {strict} | {by_tag} | {lenient} | {distance} | {scores['diversity']:.2f}"
        yield f"| {label.format(**scores)} | {cells} |"
    paired = {pair: scores["strict"] for pair, scores in suite["paired"].items()}
    gain = paired["train_rtdmd-teacher"]
    yield ""
    yield f"± is a 95 % interval over noise (other images of the same model; {suite['train_rtdmd']['images']} each)."
    yield "Paired differences in strict score: stage one minus teacher"
    yield f"{_score(paired['train_acdmd-teacher'], '+')}, stage two minus stage one"
    yield f"{_score(paired['train_rtdmd-train_acdmd'], '+')}, **stage two minus teacher {_score(gain, '+')}**"
    yield f"(± {gain['ci95_prompts']:.3f} over captions)."


def divergence(suite: dict[str, Any]) -> Iterator[str]:
    """How far each model is from the teacher, in nats, and how far it had to be."""
    yield "| model | divergence | optimum at its reward | excess | clutter | background entropy |"
    yield "|---|---|---|---|---|---|"
    for model, label in MODELS.items():
        scores = suite[model]
        figures = suite["frontier"]["models"][model]
        nats = f"{_score(figures['kl'], digits=2)} | {figures['optimum']['mean']:.2f}"
        excess = _score(figures["excess"], digits=2)
        share = f"{100 * scores['clutter']:.1f} %"
        yield f"| {label.format(**scores)} | {nats} | {excess} | {share} | {scores['background_entropy']:.2f} |"


def noise_levels(suite: dict[str, Any]) -> Iterator[str]:
    """The student at the trained η and at the others."""
    yield "| η | strict | minus trained η | CLIP score | minus trained η |"
    yield "|---|---|---|---|---|"
    student = suite["train_rtdmd"]
    yield f"| as trained | {_score(student['strict'])} | | {_score(student['clipscore'])} | |"
    for eta, scores in suite["etas"].items():
        less = scores["minus_trained"]
        strict = f"{_score(scores['strict'])} | {_score(less['strict'], '+')}"
        yield f"| {eta} | {strict} | {_score(scores['clipscore'])} | {_score(less['clipscore'], '+')} |"


TABLES: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "results": results,
    "scores by tag": scores_by_tag,
    "divergence": divergence,
    "noise levels": noise_levels,
}
"""The tables by the name in their marks."""


def _percent(score: dict[str, float], sign: str = "") -> str:
    return f"{100 * score['mean']:{sign}.1f} ± {100 * score['ci95']:.1f}"


def _score(score: dict[str, float], sign: str = "", digits: int = 3) -> str:
    return f"{score['mean']:{sign}z.{digits}f} ± {score['ci95']:.{digits}f}"


def marks(name: str) -> tuple[str, str]:
    """The lines before and after a table."""
    return f"<!-- {name}: made by `make docs` of {METRICS} -->", f"<!-- end of {name} -->"


def with_results(text: str, root: Path) -> str:
    """A page's text with the tables between their marks; the text itself where it has none."""
    for name, table in TABLES.items():
        begin, end = marks(name)
        before, found, rest = text.partition(begin)
        if found:
            suite = json.loads((root / METRICS).read_text(encoding="utf-8"))["suites"]["heldout"]
            _, _, after = rest.partition(end)
            text = before + "\n".join([begin, *table(suite), end]) + after
    return text
