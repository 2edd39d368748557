"""RTDMD: stage two of the paper as its public code has it, as the oracle corrects it, and as the preset tunes it."""

from typing import Any

from rtdmd.methods._card import Method

ADAMW: dict[str, Any] = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "max_grad_norm": 1.0}
"""The public code's optimizer, of both roles and stages but for the rates and the decay of stage two's generator."""

PUBLISHED: dict[str, Any] = {
    "candidate_steps": [0, 1, 2],
    "trained_steps": 2,
    "share_noise": True,
    "share_initial": False,
    "subset_factor": False,
    "baseline": "group_mean",
    "advantage_std": "batch",
    "advantage_clip": 5.0,
    "drop_zero_advantage": False,
    "density": "published",
    "clip_range": 1e-5,
    "credit": "trajectory",
    "weights": {
        "policy": 1.0,
        "matching": 1e-3,
        "backprop": 1e-4,
        "nft": 0.0,
        "awm": 0.0,
        "surrogate": 0.0,
        "reference_kl": 0.0,
    },
    "matching_path": "last_step",
    "normalise_matching": True,
    "matching_guidance": 1.0,
    "matching_gain": 0.0,
    "annealing": {"guidance": 0.0, "renoise": False, "epochs": 0},
    "gradient_scaling": "none",
    "backprop_at": "last_step",
    "last_step_from": "chain",
    "relative": {"liked": [], "disliked": []},
    "backprop_margin": 3.0,
    "update_order": "fake_first",
    "loss_average": "all_steps",
    "fake_updates_per_epoch": 1,
    "fake_samples": "data",
    "renoise_time": "clamped",
    "weighting": "clamp",
    "consistency": {"estimator": "two_sample", "kernel": "published", "delta": "integer"},
    "generator_optimizer": ADAMW | {"lr": 3e-6, "weight_decay": 1e-4},
    "fake_optimizer": ADAMW,
    "lr_decay_fraction": 0.0,
    "ema_decay": 0.9,
    "ema_every": 8,
    "ema_warmup": True,
    "ema_repeats": 16,
    "stage_one_adapters": "merged",
    "fake_adapter": "new",
    "adapter_init": "standard_normal",
}
"""The public code's method settings (Harahan/RTDMD). Sizes (epochs, prompts, group), rewards, the weight of the
consistency term (0.01, FLUX.1 and FLUX.2 9B 0) and the fake score's rate (SD3 3e-5, FLUX 1e-6) are the run's own."""

CORRECTED: dict[str, Any] = {
    "candidate_steps": [0, 1, 2],
    "share_noise": True,
    "subset_factor": True,
    "baseline": "leave_one_out",
    "advantage_std": "none",
    "density": "gaussian",
    "clip_range": 0.2,
    "matching_path": "reward",
    "drop_zero_advantage": True,
    "loss_average": "trained_steps",
    "fake_samples": "data",
    "weighting": "inverse_variance",
}
"""What holds the oracle's fixed point. Weights, their scaling and the rates are the run's own."""

_SOURCE = "arXiv 2605.26108, section RTDMD; public code Harahan/RTDMD"
_EQUATION = (
    "∇KL(p_θ ‖ p_ψ exp(βr)) = ∇KL(p_θ ‖ p_ψ) - β ∇E r(x̂_0): matching, SubGRPO on the stochastic steps, reward"
    " back-propagation through the last step"
)
_AVERAGE = ("ema_decay", "ema_every", "ema_warmup", "ema_repeats")
_ADAPTERS = ("stage_one_adapters", "fake_adapter", "adapter_init")
_RUNS_OWN = ("generator_optimizer", "fake_optimizer", "lr_decay_fraction", *_ADAPTERS, *_AVERAGE)
_ESTIMATOR = {key: value for key, value in PUBLISHED.items() if key not in _RUNS_OWN}

METHODS = (
    Method(
        name="rtdmd",
        stage="train_rtdmd",
        title="RTDMD with the preset's settings",
        source=_SOURCE,
        equation=_EQUATION,
        settings={},
        ours="steps, weights, unit-norm scaling and rates of the preset (docs/results.md)",
        departs=("matching acts at a random step; true Gaussian log-density; each term's gradient at norm 1",),
    ),
    Method(
        name="rtdmd-published",
        stage="train_rtdmd",
        title="RTDMD, the public code's estimator",
        source=_SOURCE,
        equation=_EQUATION,
        settings=_ESTIMATOR,
        ours=(
            "rates, average, optimizers and the start of adapters are the preset's: 3e-6 is for models of 2 B"
            " parameters"
        ),
        departs=("`rtdmd params world --recipe published` has its rates too",),
    ),
    Method(
        name="rtdmd-corrected",
        stage="train_rtdmd",
        title="RTDMD, corrected on the oracle",
        source="ours (docs/verification.md)",
        equation=_EQUATION + "; matching is also a reward of the stochastic steps, advantages keep the rewards' units",
        settings={**CORRECTED, "trained_steps": 2, "share_initial": False},
        ours="all of it; weights and unit-norm scaling are the preset's, so that no fixed point is claimed",
    ),
)

RECIPES: dict[str, dict[str, Any]] = {"published": PUBLISHED, "corrected": CORRECTED}
"""What the section's `recipe: published` and `recipe: corrected` promise; the first has the code's own rates."""
