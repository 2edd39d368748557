"""Presets of the five real backbones: the public code's settings (Harahan/RTDMD, its configs/ folder) in our keys.

Each is laid over the world preset and replaces every setting of teacher, prompts, training and evaluation. `NOTES` are
printed above the file: where the sizes come from, what is left out, and the result to expect.
"""

from __future__ import annotations

from typing import Any

from rtdmd.common.pins import UNPINNED
from rtdmd.methods import acdmd
from rtdmd.methods.rtdmd import ADAMW, PUBLISHED

_VIT_L = {"base": "openai/clip-vit-large-patch14", "base_revision": UNPINNED}
_VIT_H = {"base": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "base_revision": UNPINNED}
_BERT = {"base": "google-bert/bert-base-uncased", "base_revision": UNPINNED}
SCORERS: dict[str, dict[str, Any]] = {
    "clipscore": {
        "model": "openai/clip-vit-large-patch14",
        "revision": UNPINNED,
        "pixels": "bytes",
        "resize": "bilinear",
    },
    "aesthetic": {"model": "./models/aesthetic", **_VIT_L, "pixels": "bytes"},
    "pickscore": {"model": "yuvalkirstain/PickScore_v1", "revision": UNPINNED, **_VIT_H, "pixels": "bytes"},
    "hpsv2": {"model": "xswu/HPSv2", "revision": UNPINNED, **_VIT_H, "pixels": "bytes"},
    "imagereward": {"model": "zai-org/ImageReward", "revision": UNPINNED, **_BERT, "pixels": "bytes"},
    "hpsv3": {
        "model": "MizzenAI/HPSv3",
        "revision": UNPINNED,
        "base": "Qwen/Qwen2-VL-7B-Instruct",
        "base_revision": UNPINNED,
        "offload": True,
    },
    "geneval": {
        "model": "facebook/mask2former-swin-small-coco-instance",
        "revision": UNPINNED,
        "colour_model": "openai/clip-vit-large-patch14",
        "colour_revision": UNPINNED,
        "soft_weight": 1.0,
        "soft_parts": "published",
    },
    "geneval2": {
        "model": "Qwen/Qwen3-VL-8B-Instruct",
        "revision": UNPINNED,
        "answers": "first_token",
        "precision": "float16",
        "offload": True,
    },
    "ocr": {},
}
"""Each scorer's keys as the public code uses it (docs/configuration.md). geneval is its soft score, in training and
among the nine; the table by tags takes its strict verdict (rtdmd/experiments)."""


def scorer(name: str, **keys: Any) -> dict[str, Any]:
    """A scorer's entry in params.yaml, with other keys."""
    return {"name": name, **SCORERS[name], **keys}


_TRAINING = [
    scorer("clipscore"),
    scorer("hpsv2"),
    scorer("pickscore", backprop_resize="bilinear"),
    scorer("geneval"),
]
_SCORED_BY = {"drawbench": ["clipscore", "aesthetic", "pickscore", "hpsv2", "imagereward"]}
"""The scorers of an evaluation set; each other set's is the one of its name."""
_IMAGES = {"drawbench": 5, "hpsv3": 1, "geneval": 4, "geneval2": 1, "ocr": 1}
"""Images of each prompt, by evaluation set; DrawBench has 200 prompts (the public file has every prompt five times)."""


def suite(name: str, scorers: list[str]) -> dict[str, Any]:
    """An entry of evaluate.suites as published: a whole set of prompts, by these scorers, at 1024 pixels."""
    return {"name": name, "prompts": name, "rewards": scorers, "images_per_prompt": _IMAGES[name], "resolution": 1024}


def watch(every: int, max_prompts: int = 64, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A training stage's watch as published: the evaluation's sets and scorers but those ``without``, at the resolution
    of the training."""
    sets = [name for name in _IMAGES if name not in without]
    return {
        "every": every,
        "max_prompts": max_prompts,
        "images": 1,
        "suites": [{"name": name, "prompts": name, "rewards": _SCORED_BY.get(name, [name])} for name in sets],
        "rewards": [scorer(name) for name in SCORERS if name not in without],
    }


_CONSISTENCY = {
    "weight": 0.01,
    "estimator": "two_sample",
    "kernel": "published",
    "delta": "integer",
}

COMMON: dict[str, Any] = {
    "run": {"seed": 42, "threads": 8, "device": "cuda", "gpus_per_node": None},
    "model": {"revision": UNPINNED, "resolution": 512, "dtype": "bfloat16", "num_steps": 4, "eta": 0.9},
    "adapter": {"mode": "lora", "rank": 32, "alpha": 64, "targets": "attention", "gradient_checkpointing": True},
    "prepare_prompts": {
        "sets": {
            "pickscore": [{"name": "pickscore", "path": "data/prompts/pickscore_train.txt"}],
            "geneval_train": [{"name": "geneval", "path": "data/prompts/geneval_train.jsonl"}],
            "drawbench": [{"name": "drawbench", "path": "data/prompts/drawbench.txt"}],
            "hpsv3": [{"name": "hpsv3", "path": "data/prompts/hpsv3.txt"}],
            "geneval": [{"name": "geneval", "path": "data/prompts/geneval.jsonl"}],
            "geneval2": [{"name": "geneval2", "path": "data/prompts/geneval2.jsonl"}],
            "ocr": [{"name": "ocr", "path": "data/prompts/ocr.txt"}],
        },
        "on_bad": "drop",
        "max_characters": 2000,
    },
    "cache_teacher": {
        "mode": "cache",
        "batch_size": 16,
        "storage_dtype": "bfloat16",
        "unpadded": True,
        "budget_gib": 128.0,
    },
    "train_acdmd": acdmd.PUBLISHED
    | {
        "recipe": "published",
        "iterations": 15000,
        "prompts": "pickscore",
        "prompt_order": "as_listed",
        "processes": 1,
        "compile": False,
        "batch_size": 72,
        "micro_batch": 9,
        "sharding": "none",
        "shard_group": None,
        "generator_optimizer": ADAMW | {"lr": 3e-5},
        "fake_optimizer": ADAMW | {"lr": 3e-5},
        "watch": watch(1000),
        "save_every": 500,
        "keep": 2,
        "image_log_every": 0,
        "log_every": 10,
    },
    "train_rtdmd": PUBLISHED
    | {
        "recipe": "published",
        "epochs": 1000,
        "processes": 1,
        "compile": False,
        "surrogate": {"prompts": 64, "optimizer": {"lr": 3e-4}},
        "prompts": "geneval_train",
        "prompts_per_epoch": 64,
        "prompt_order": "as_listed",
        "group_size": 24,
        "fake_batch_size": 1536,
        "last_step_batch_size": 1536,
        "sharding": "none",
        "shard_group": None,
        "consistency": _CONSISTENCY,
        "rewards": _TRAINING,
        "validation": {"every": 0, "prompts": 32, "images": 8, "min_diversity": 0.8, "patience": 0},
        "watch": watch(50),
        "save_every": 100,
        "keep": 2,
        "image_log_every": 50,
        "log_every": 1,
    },
    "evaluate": {
        "suites": [suite(name, _SCORED_BY.get(name, [name])) for name in _IMAGES],
        "batch_size": 16,
        "models": ["teacher", "teacher_few_step", "train_acdmd", "train_rtdmd"],
        "rewards": [scorer(name) for name in SCORERS],
        "features_model": None,
    },
    "report": {"grid_prompts": 12},
    "publish": {"prompt": "a photo of an astronaut riding a horse on the moon"},
}
_SLOW = {"generator_optimizer": {"lr": 1e-6}, "fake_optimizer": {"lr": 1e-6}}
_FLUX_WATCH = {"watch": watch(1000, without=("geneval", "geneval2"))}  # FLUX's
_ON_THE_FLY = {"cache_teacher": {"mode": "on_the_fly", "unpadded": False}}

REAL: dict[str, dict[str, Any]] = {
    "sd3m": {
        "model": {
            "family": "sd3",
            "teacher": "stabilityai/stable-diffusion-3-medium-diffusers",
            "resolution": 1024,
            "guidance": 7.0,
            "teacher_steps": 50,
            "max_sequence_length": 128,
        },
        "train_acdmd": {"watch": {"max_prompts": 8}},
        "train_rtdmd": {
            "prompts_per_epoch": 32,
            "group_size": 16,
            "fake_batch_size": 512,
            "last_step_batch_size": 512,
            "micro_batch": 2,
            "fake_optimizer": {"lr": 3e-5},
        },
        "report": {"title": "RTDMD on SD3-M"},
    },
    "sd35m": {
        "model": {
            "family": "sd3",
            "teacher": "stabilityai/stable-diffusion-3.5-medium",
            "guidance": 4.5,
            "teacher_steps": 40,
            "max_sequence_length": 128,
        },
        "train_rtdmd": {
            "prompts_per_epoch": 48,
            "fake_batch_size": 1152,
            "last_step_batch_size": 1152,
            "micro_batch": 9,
            "fake_optimizer": {"lr": 3e-5},
        },
        "report": {"title": "RTDMD on SD3.5-M"},
    },
    "flux1-dev": _ON_THE_FLY
    | {
        "model": {
            "family": "flux1",
            "teacher": "black-forest-labs/FLUX.1-dev",
            "guidance": 3.5,
            "teacher_steps": 50,
            "max_sequence_length": 512,
        },
        "train_acdmd": _FLUX_WATCH,
        "train_rtdmd": {
            "micro_batch": 3,
            "fake_optimizer": {"lr": 1e-6},
            "consistency": {"weight": 0.0},
            "save_every": 50,
        },
        "evaluate": {"batch_size": 8},
        "report": {"title": "RTDMD on FLUX.1 [dev]"},
    },
    "flux2-klein-4b": _ON_THE_FLY
    | {
        "model": {
            "family": "flux2",
            "teacher": "black-forest-labs/FLUX.2-klein-base-4B",
            "student": {"model": "black-forest-labs/FLUX.2-klein-4B", "revision": UNPINNED},
            "guidance": 4.0,
            "teacher_steps": 50,
            "max_sequence_length": 512,
        },
        "train_acdmd": _SLOW | _FLUX_WATCH,
        "train_rtdmd": {"micro_batch": 6, "fake_optimizer": {"lr": 1e-6}},
        "report": {"title": "RTDMD on FLUX.2 [klein] 4B"},
    },
    "flux2-klein-9b": _ON_THE_FLY
    | {
        "model": {
            "family": "flux2",
            "teacher": "black-forest-labs/FLUX.2-klein-base-9B",
            "student": {"model": "black-forest-labs/FLUX.2-klein-9B", "revision": UNPINNED},
            "guidance": 4.0,
            "teacher_steps": 50,
            "max_sequence_length": 512,
        },
        "train_acdmd": _SLOW | _FLUX_WATCH,
        "train_rtdmd": {
            "micro_batch": 3,
            "fake_optimizer": {"lr": 1e-6},
            "consistency": {"weight": 0.0},
            "save_every": 50,
        },
        "evaluate": {"batch_size": 4},
        "report": {"title": "RTDMD on FLUX.2 [klein] 9B"},
    },
}
"""Name -> what differs from COMMON."""

_FILL_IN = (
    "To fill in before a run: every revision of forty zeros (the first stage that needs one prints the command that"
    " finds it), and the files that are named: data/prompts/pickscore_train.txt is dataset/pickscore/train.txt of the"
    " public code, geneval_train.jsonl its dataset/geneval/train_metadata.jsonl, and drawbench.txt, hpsv3.txt,"
    " geneval.jsonl, geneval2.jsonl and ocr.txt are the files test.txt,"
    " test_metadata.jsonl or test.jsonl of its folders of these names; models/aesthetic holds"
    " sac+logos+ava1-l14-linearMSE.pth of christophschuhmann/improved-aesthetic-predictor."
)
_LEFT_OUT = (
    "Left out, where the public code trains on it: a training prompt that is also an evaluation prompt (on_bad: drop),"
    " that is one of PickScore's 25 432, which DrawBench has, and what GenEval's two files share."
)
_SIZES = (
    "Published sizes are totals over GPUs: stage one 9 prompts x 8, 15000 updates; stage two {}, about 1000 epochs. Set"
    " processes in train_acdmd and train_rtdmd to the number of GPUs that you have, which changes only last digits."
    " micro_batch is the published batch of one GPU, which on the published number of GPUs fits cards of 80 GB by"
    " `rtdmd plan` (FLUX.2 9B's with sharding: base); on fewer you may need less, which changes only rounding."
    " The seed is the public code's. The evaluation is that of the published tables: nine scorers on five sets, at 1024"
    " pixels, and that of each stage while it trains (watch) the public code's, at the resolution of the training."
)
_EIGHT = {"processes": 8, "sharding": "base"}
PARALLEL: dict[str, dict[str, dict[str, Any]]] = {
    "sd3m": {
        "train_acdmd": _EIGHT,
        "train_rtdmd": {"processes": 16, "sharding": "hybrid", "shard_group": 8},
    },
    "sd35m": {
        "train_acdmd": _EIGHT,
        "train_rtdmd": {"processes": 8, "sharding": "none"},
    },
    "flux1-dev": {
        "train_acdmd": _EIGHT,
        "train_rtdmd": {"processes": 32, "sharding": "base"},
    },
    "flux2-klein-4b": {
        "train_acdmd": _EIGHT,
        "train_rtdmd": {"processes": 16, "sharding": "base"},
    },
    "flux2-klein-9b": {
        "train_acdmd": _EIGHT,
        "train_rtdmd": {"processes": 32, "sharding": "base"},
    },
}
"""Name -> the published number of GPUs, 8 in a node, and how the base lies on them, in our keys. No preset has them:
each runs on what GPUs there are."""


def _parallel(name: str) -> str:
    keys = ("; ".join(f"{key}: {value}" for key, value in own.items()) for own in PARALLEL[name].values())
    return "Published on nodes of 8 GPUs (run.gpus_per_node: 8): train_acdmd with {}; train_rtdmd with {}.".format(
        *keys
    )


_ON_THE_FLY_NOTE = (
    "Text is encoded while training ({} resident): a cache of PickScore's and DrawBench's 25 632 prompts alone would"
    " take {} GiB."
)
_UNKNOWN = "To expect: no figures are published, only a checkpoint ({})."
_SCORES = "CLIPScore {} / Aesthetic {} / PickScore {} / HPSv2 {} / ImageReward {}"

_NOTES: dict[str, list[str]] = {
    "sd3m": [
        _SIZES.format("32 prompts x 16 images (2 x 16 batches x 16 GPUs)"),
        "To expect on DrawBench in 4 steps (paper, table 1): "
        + _SCORES.format("0.3161", "5.9642", "22.8593", "0.3211", "1.3024")
        + "; the teacher in 100 passes: "
        + _SCORES.format("0.2936", "5.5711", "22.3236", "0.2810", "1.0759"),
    ],
    "sd35m": [
        _SIZES.format("48 prompts x 24 images (9 x 16 batches x 8 GPUs)"),
        "To expect on DrawBench in 4 steps (paper, ablations): CLIPScore 0.2843 / PickScore 23.57 / HPSv2 0.3456; after"
        " stage one alone 0.2822 / 22.51 / 0.2942. With GenEval as the only reward: overall 0.94 (teacher 0.63).",
    ],
    "flux1-dev": [
        _SIZES.format("64 prompts x 24 images (3 x 16 batches x 32 GPUs)"),
        _UNKNOWN.format("Harahan/FLUX1-12B-RTDMD"),
        _ON_THE_FLY_NOTE.format("T5", "100"),
    ],
    "flux2-klein-4b": [
        _SIZES.format("64 prompts x 24 images (6 x 16 batches x 16 GPUs)"),
        "To expect in 4 steps (paper, table 2): "
        + _SCORES.format("0.3219", "5.7746", "23.9642", "0.3516", "1.3712")
        + " / HPSv3 15.5772 / GenEval 0.9046 / GenEval2 0.2755 / OCR 0.6858; the teacher in 50: "
        + _SCORES.format("0.2834", "5.3333", "22.3938", "0.2771", "0.8538")
        + " / HPSv3 11.7025 / GenEval 0.7631 / GenEval2 0.2207 / OCR 0.6133",
        _ON_THE_FLY_NOTE.format("Qwen3", "188"),
    ],
    "flux2-klein-9b": [
        _SIZES.format("64 prompts x 24 images (3 x 16 batches x 32 GPUs)"),
        _UNKNOWN.format("Harahan/FLUX2-9B-RTDMD"),
        _ON_THE_FLY_NOTE.format("Qwen3", "300"),
    ],
}
NOTES = {name: [*notes, _parallel(name), _LEFT_OUT, _FILL_IN] for name, notes in _NOTES.items()}
"""Name -> paragraphs above the printed file."""
