"""How the published tables score: nine scorers, each on its own prompt set at 1024 pixels, whole sets.

DrawBench has 200 prompts with 5 images each (the public file has every prompt five times), GenEval 553 with 4.
"""

from __future__ import annotations

from typing import Any

SETS: dict[str, list[dict[str, Any]]] = {
    "drawbench": [{"name": "drawbench", "path": "data/prompts/drawbench.txt"}],
    "hpsv3": [{"name": "hpsv3", "path": "data/prompts/hpsv3.txt"}],
    "geneval": [{"name": "geneval", "path": "data/prompts/geneval.jsonl"}],
    "geneval2": [{"name": "geneval2", "path": "data/prompts/geneval2.jsonl"}],
    "ocr": [{"name": "ocr", "path": "data/prompts/ocr.txt"}],
}
"""The sets of prompts by name: the test files of the public code's dataset folder."""

TRAINED = {"geneval_train": [{"name": "geneval", "path": "data/prompts/geneval_train.jsonl"}]}
"""GenEval's training prompts."""

IMAGES = {"drawbench": 5, "geneval": 4, "hpsv3": 1, "geneval2": 1, "ocr": 1}
"""Images of each prompt, by set."""

RESOLUTION = 1024


def suite(name: str, scorers: list[str]) -> dict[str, Any]:
    """An entry of evaluate.suites: a whole set of prompts, by these scorers."""
    size = {"images_per_prompt": IMAGES[name], "resolution": RESOLUTION}
    return {"name": name, "prompts": name, "rewards": scorers, **size}
