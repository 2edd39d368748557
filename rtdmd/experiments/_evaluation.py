"""How the published tables score: nine scorers, each on its own prompt set at 1024 pixels, whole sets.

DrawBench has 200 prompts with 5 images each (the public file has every prompt five times), GenEval 553 with 4.
"""

from __future__ import annotations

from typing import Any

from rtdmd.common.pins import UNPINNED

_VIT_L = {"base": "openai/clip-vit-large-patch14", "base_revision": UNPINNED}
_VIT_H = {"base": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "base_revision": UNPINNED}
_BERT = {"base": "google-bert/bert-base-uncased", "base_revision": UNPINNED}
_QWEN2 = {"base": "Qwen/Qwen2-VL-7B-Instruct", "base_revision": UNPINNED}
_DETECTOR = {"model": "facebook/mask2former-swin-small-coco-instance", "revision": UNPINNED}
_COLOURS = {"colour_model": "openai/clip-vit-large-patch14", "colour_revision": UNPINNED}

SCORERS: dict[str, dict[str, Any]] = {
    "clipscore": {"model": "openai/clip-vit-large-patch14", "revision": UNPINNED},
    "aesthetic": {"model": "./models/aesthetic", **_VIT_L},
    "pickscore": {"model": "yuvalkirstain/PickScore_v1", "revision": UNPINNED, **_VIT_H},
    "hpsv2": {"model": "xswu/HPSv2", "revision": UNPINNED, **_VIT_H},
    "imagereward": {"model": "zai-org/ImageReward", "revision": UNPINNED, **_BERT},
    "hpsv3": {"model": "MizzenAI/HPSv3", "revision": UNPINNED, **_QWEN2},
    "geneval": {**_DETECTOR, **_COLOURS, "soft_weight": 0.0},
    "geneval2": {"model": "Qwen/Qwen3-VL-8B-Instruct", "revision": UNPINNED},
    "ocr": {},
}
"""The keys of each scorer's entry; geneval's verdict is the benchmark's, 0 or 1."""

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


def scorer(name: str, **keys: Any) -> dict[str, Any]:
    """A scorer's entry, with other keys."""
    return {"name": name, **SCORERS[name], **keys}


def suite(name: str, scorers: list[str]) -> dict[str, Any]:
    """An entry of evaluate.suites: a whole set of prompts, by these scorers."""
    size = {"images_per_prompt": IMAGES[name], "resolution": RESOLUTION}
    return {"name": name, "prompts": name, "rewards": scorers, **size}
