"""The README's table of the demo, made of results/evaluate/metrics.json.

`python -m tools.docs --write` (`make docs`) writes it, `make lint` compares it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEGIN = "<!-- results: made by `make docs` of results/evaluate/metrics.json -->"
END = "<!-- end of results -->"
METRICS = Path("results/evaluate/metrics.json")
MODELS = {
    "teacher": "teacher, {steps} guided Euler steps",
    "teacher_few_step": "teacher, {steps} guided Euler steps",
    "train_acdmd": "stage one (AC-DMD), {steps} steps",
    "train_rtdmd": "**stage two (RTDMD)**, {steps} steps",
}


def rows(suite: dict[str, Any]) -> Iterator[str]:
    """The table's lines, and what its figures are."""
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


def _percent(score: dict[str, float], sign: str = "") -> str:
    return f"{100 * score['mean']:{sign}.1f} ± {100 * score['ci95']:.1f}"


def with_results(text: str, root: Path) -> str:
    """A page's text with the table between its marks; the text itself where it has none."""
    if BEGIN not in text:
        return text
    suite = json.loads((root / METRICS).read_text(encoding="utf-8"))["suites"]["heldout"]
    table = "\n".join(rows(suite))
    pattern = re.escape(BEGIN) + r".*?" + re.escape(END)
    return re.sub(pattern, lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)
