"""Named, complete parameter sets: `world` (the demo, also the committed params.yaml), `smoke` (everything tiny) and the
five real backbones of rtdmd/config/real.py."""

from __future__ import annotations

from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.config.load import validate
from rtdmd.config.real import COMMON, REAL
from rtdmd.config.tree import Params
from rtdmd.methods import acdmd, rtdmd

_CLIP = {"name": "clipscore", "model": "data/world/clip", "weight": 1.0}
_VERIFIER = {"name": "world_verifier", "weight": 1.0, "soft_weight": 0.7}
_HELDOUT = {"name": "heldout", "prompts": "heldout"}
_WATCH = {"max_prompts": 48, "images": 1, "suites": [_HELDOUT], "rewards": [_CLIP, _VERIFIER]}

WORLD: dict[str, Any] = {
    "run": {"seed": 0, "threads": 2, "device": "cpu", "gpus_per_node": None},
    "model": {
        "family": "sd3",
        "teacher": "data/world/teacher",
        "revision": None,
        "student": None,
        "resolution": 36,
        "width": None,
        "dtype": "float32",
        "guidance": 2.0,
        "teacher_steps": 28,
        "max_sequence_length": 1,
        "num_steps": 4,
        "shift": None,
        "eta": 0.9,
    },
    "adapter": {"mode": "lora", "rank": 32, "alpha": 64, "targets": "all", "gradient_checkpointing": False},
    "prepare_prompts": {
        "sets": {
            "train": [{"name": "world", "split": "train"}],
            "heldout": [{"name": "world", "split": "heldout"}],
        },
        "on_bad": "error",
        "max_characters": 2000,
    },
    "cache_teacher": {
        "mode": "cache",
        "batch_size": 64,
        "storage_dtype": "float32",
        "unpadded": False,
        "budget_gib": 1.0,
    },
    "train_acdmd": {
        "recipe": "custom",
        "iterations": 1000,
        "prompts": "train",
        "prompt_order": "uniform",
        "tag_shares": {},
        "processes": 1,
        "compile": False,
        "batch_size": 48,
        "micro_batch": 48,
        "sharding": "none",
        "shard_group": None,
        "generator_every": 4,
        "generator_optimizer": rtdmd.ADAMW | {"lr": 1e-3},
        "fake_optimizer": rtdmd.ADAMW | {"lr": 2e-3},
        "warmup": 0,
        "adapter_init": "kaiming_uniform",
        "ema_decay": 0.98,
        "ema_per": "generator_update",
        "renoise_from": "step",
        "rollout_stop": "random",
        "generator_rollout": "shared",
        "fake_per_step": False,
        "guidance_range": None,
        "renoise_time": "uniform",
        "weighting": "inverse_variance",
        "consistency": {
            "weight": 0.0,
            "estimator": "two_sample",
            "kernel": "published",
            "delta": "uniform",
        },
        "watch": _WATCH | {"every": 250},
        "save_every": 100,
        "keep": 2,
        "image_log_every": 250,
        "log_every": 10,
    },
    "train_rtdmd": {
        "recipe": "custom",
        "epochs": 118,
        "processes": 1,
        "compile": False,
        "prompts": "train",
        "prompts_per_epoch": 64,
        "prompt_order": "by_tag",
        "tag_shares": {"counting": 2, "position": 2, "two_object": 2, "color_attr": 2},
        "group_size": 8,
        "candidate_steps": [1],
        "trained_steps": 1,
        "share_noise": True,
        "share_initial": True,
        "subset_factor": False,
        "baseline": "group_mean",
        "advantage_std": "batch",
        "advantage_clip": 5.0,
        "drop_zero_advantage": True,
        "density": "gaussian",
        "clip_range": 0.2,
        "credit": "trajectory",
        "weights": {
            "policy": 1.0,
            "matching": 0.25,
            "backprop": 0.25,
            "nft": 0.0,
            "awm": 0.0,
            "surrogate": 0.0,
            "reference_kl": 0.0,
        },
        "reference_measure": "transitions",
        "matching_path": "random_step",
        "normalise_matching": True,
        "matching_guidance": 1.0,
        "matching_gain": 0.0,
        "nft_strength": 1.0,
        "nft_form": "plain",
        "awm_power": 0.25,
        "surrogate": {
            "prompts": 16,
            "preference": 1.0,
            "anchor": 0.001,
            "bound": 0.05,
            "train_min_sigma": 0.55,
            "reward_min_sigma": 0.25,
            "guidance": 0.43,
            "optimizer": rtdmd.ADAMW | {"lr": 2e-3, "weight_decay": 1e-4},
        },
        "annealing": {"guidance": 0.0, "renoise": False, "epochs": 0},
        "gradient_scaling": "unit_norm",
        "backprop_at": "random_step",
        "last_step_from": "chain",
        "relative": {"strength": 0.1, "liked": [], "disliked": []},
        "backprop_margin": 3.0,
        "fake_updates_per_epoch": 8,
        "update_order": "generator_first",
        "loss_average": "trained_steps",
        "fake_samples": "chain",
        "fake_batch_size": 64,
        "last_step_batch_size": 64,
        "micro_batch": 32,
        "sharding": "none",
        "shard_group": None,
        "guidance_range": None,
        "renoise_time": "uniform",
        "weighting": "inverse_variance",
        "consistency": {
            "weight": 0.0,
            "estimator": "two_sample",
            "kernel": "published",
            "delta": "uniform",
        },
        "generator_optimizer": rtdmd.ADAMW | {"lr": 1.4e-3, "weight_decay": 1e-4},
        "fake_optimizer": rtdmd.ADAMW | {"lr": 2e-3, "weight_decay": 1e-4},
        "lr_decay_fraction": 0.7,
        "stage_one_adapters": "stacked",
        "fake_adapter": "continued",
        "adapter_init": "kaiming_uniform",
        "ema_decay": 0.93,
        "ema_every": 1,
        "ema_warmup": False,
        "ema_repeats": 1,
        "rewards": [_CLIP | {"policy": False}, _VERIFIER | {"soft_weight": 0.0}],
        "validation": {"every": 0, "prompts": 32, "images": 8, "min_diversity": 0.8, "patience": 0},
        "watch": _WATCH | {"every": 30, "images": 8},
        "save_every": 10,
        "keep": 2,
        "image_log_every": 30,
        "log_every": 1,
    },
    "evaluate": {
        "suites": [_HELDOUT | {"images_per_tag": 300, "reference_images": 2000, "teacher_images": 900}],
        "batch_size": 150,
        "models": ["teacher", "teacher_few_step", "train_acdmd", "train_rtdmd"],
        "imported": None,
        "etas": [0.0, 1.0],
        "rewards": [_CLIP, _VERIFIER],
        "features_model": "data/world/clip",
    },
    "report": {"title": "RTDMD on the embedded world", "experiment": None, "grid_prompts": 12},
    "publish": {
        "format": "both",
        "prompt": "a photo of a red circle and a blue square",
        "datasets": [],
        "repo_id": None,
        "private": True,
        "dry_run": True,
    },
}

_SMOKE: dict[str, Any] = {
    "model": {"teacher_steps": 4},
    "adapter": {"rank": 4, "alpha": 8},
    "train_acdmd": {
        "iterations": 4,
        "batch_size": 4,
        "generator_every": 2,
        "consistency": {"weight": 0.01},
        "watch": {"every": 0},
        "save_every": 2,
        "log_every": 1,
    },
    "train_rtdmd": {
        "epochs": 2,
        "prompts_per_epoch": 2,
        "group_size": 2,
        "fake_updates_per_epoch": 1,
        "fake_batch_size": 4,
        "consistency": {"weight": 0.01},
        "watch": {"every": 0, "images": 1},
        "save_every": 1,
    },
    "evaluate": {
        "suites": [_HELDOUT | {"images_per_tag": 4, "reference_images": 24, "teacher_images": 24}],
        "batch_size": 12,
    },
    "report": {"title": "RTDMD smoke run", "grid_prompts": 4},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the leaves of `changes` in place of its own (new dictionaries; the arguments stay as they are)."""
    result = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if nested else value
    return result


PRESETS: dict[str, dict[str, Any]] = {"world": WORLD, "smoke": merged(WORLD, _SMOKE)}
_ANY = WORLD | {  # neither the world's prompts nor shares of their tags are any real preset's
    "prepare_prompts": WORLD["prepare_prompts"] | {"sets": {}},
    "train_rtdmd": WORLD["train_rtdmd"] | {"tag_shares": {}},
}
PRESETS |= {name: merged(merged(_ANY, COMMON), own) for name, own in REAL.items()}
RECIPES: dict[str, dict[str, Any]] = {
    name: {"train_rtdmd": {"recipe": name, **settings}} for name, settings in rtdmd.RECIPES.items()
}
for _name, _settings in acdmd.RECIPES.items():
    RECIPES[_name]["train_acdmd"] = {"recipe": _name, **_settings}


def long_enough(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """What `--recipe` or `--method` lays over a preset. A smoke run is made as long as it takes to do once what these
    settings do every so many steps."""
    if name != "smoke":
        return changes
    tree = merged(PRESETS[name], changes)
    one = tree["train_acdmd"]
    two = tree["train_rtdmd"]
    lengths = {
        "train_acdmd": {"iterations": max(one["iterations"], one["generator_every"])},
        "train_rtdmd": {"epochs": max(two["epochs"], two["ema_every"] - two["ema_warmup"])},
    }
    return merged(changes, lengths)


def preset(name: str, changes: dict[str, Any] | None = None) -> Params:
    """A preset's validated tree, with `changes` (nested dictionaries) laid over it. UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"preset {name!r} is unknown; allowed: {', '.join(PRESETS)}")
    return validate(merged(PRESETS[name], changes or {}), f"preset {name}")
