"""Keys that params.yaml had once, and what to do about each: an old file is told so, by its own key."""

from __future__ import annotations

_LOSSES = "rtdmd/train/losses.py"
_CONSTANTS = {
    "renoise": ("0.01, 0.02 and 0.98", "RENOISE_MARGIN, RENOISE_LOW and RENOISE_HIGH", _LOSSES),
    "weight_clamp": ("10", "WEIGHT_CLAMP", _LOSSES),
    "consistency.delta_min": ("0.001", "MIN_DELTA", _LOSSES),
    "consistency.delta_max": ("0.2", "MAX_DELTA", _LOSSES),
}
_OF_STAGE_TWO = {"advantage_eps": ("1e-4", "ADVANTAGE_EPS", "rtdmd/train/rtdmd.py")}

REMOVED: dict[str, tuple[str, str, str]] = {
    f"{section}.{key}": found
    for section, keys in (("train_acdmd", _CONSTANTS), ("train_rtdmd", _CONSTANTS | _OF_STAGE_TWO))
    for key, found in keys.items()
}
"""Dotted key -> the public code's value, which nothing varied, the constant that has it now, and its file."""

_OPTIMIZER = {
    "lr_generator": ("generator_optimizer.lr",),
    "lr_fake": ("fake_optimizer.lr",),
    "betas": ("generator_optimizer.betas", "fake_optimizer.betas"),
    "weight_decay": ("generator_optimizer.weight_decay", "fake_optimizer.weight_decay"),
    "max_grad_norm": ("generator_optimizer.max_grad_norm", "fake_optimizer.max_grad_norm"),
}

_WORDS = {
    "train_acdmd.start": "train_acdmd.renoise_from",
    "train_acdmd.stop": "train_acdmd.rollout_stop",
    "train_acdmd.panel_every": "train_acdmd.image_log_every",
    "train_rtdmd.panel_every": "train_rtdmd.image_log_every",
    "train_rtdmd.fake_start": "train_rtdmd.fake_samples",
    "train_rtdmd.lr_fall": "train_rtdmd.lr_decay_fraction",
    "train_rtdmd.dynamic": "train_rtdmd.annealing",
    "train_rtdmd.surrogate.learn_from": "train_rtdmd.surrogate.train_min_sigma",
    "train_rtdmd.surrogate.read_from": "train_rtdmd.surrogate.reward_min_sigma",
}

RENAMED: dict[str, tuple[str, ...]] = {
    **{old: (new,) for old, new in _WORDS.items()},
    "prepare_prompts.train": ("prepare_prompts.sets.train", "train_acdmd.prompts", "train_rtdmd.prompts"),
    "prepare_prompts.eval": ("prepare_prompts.sets.heldout", "evaluate.suites"),
}
"""Dotted key -> the key, or the keys, that say the same now."""
for _section in ("train_acdmd", "train_rtdmd"):
    for _key, _names in _OPTIMIZER.items():
        RENAMED[f"{_section}.{_key}"] = tuple(f"{_section}.{_name}" for _name in _names)


MOVED: dict[str, str] = {
    f"evaluate.{key}": text
    for key, text in {
        "images_per_tag": "is a key of each suite now: evaluate.suites: [{..., images_per_tag: 300}]",
        "reference_images": "is a key of each suite now: evaluate.suites: [{..., reference_images: 2000}]",
        "reference": "is said by each suite now: evaluate.suites: [{..., reference_images: 2000}], without it for none",
    }.items()
}
"""Dotted key -> where its setting is now."""


def removed(key: str) -> str | None:
    """What to do about a key that was removed or renamed; None for any other."""
    if key in RENAMED:
        return f"{key}: renamed; set {' and '.join(RENAMED[key])} instead"
    if key in MOVED:
        return f"{key}: {MOVED[key]}"
    if key not in REMOVED:
        return None
    value, constant, file = REMOVED[key]
    return f"{key}: no setting any more, always {value} ({constant} in {file}); delete the key"
