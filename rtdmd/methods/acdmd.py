"""AC-DMD: stage one of the paper, with every consistency weight γ of its ablation (γ = 0: A-DMD)."""

from typing import Any

from rtdmd.methods._card import Method
from rtdmd.methods.rtdmd import ADAMW

PUBLISHED: dict[str, Any] = {
    "generator_every": 10,
    "warmup": 0,
    "generator_optimizer": ADAMW,
    "fake_optimizer": ADAMW,
    "adapter_init": "gaussian",
    "ema_decay": 0.99,
    "ema_per": "iteration",
    "renoise_from": "step",
    "rollout_stop": "random",
    "generator_rollout": "own",
    "fake_per_step": False,
    "renoise_time": "clamped",
    "weighting": "clamp",
    "consistency": {"weight": 0.01, "estimator": "two_sample", "kernel": "published", "delta": "integer"},
}
"""The public code's method settings (Harahan/RTDMD). Sizes (iterations, batch) and rates (3e-5, FLUX.2 1e-6) are the
run's own."""

RECIPES: dict[str, dict[str, Any]] = {"published": PUBLISHED}
"""What the section's `recipe: published` promises."""

_EQUATION = (
    "x_s from a rollout with random stop; t ~ U(s, 1), x_t = α x_s + β z; fake score on u = α' x_s + β' z plus γ times"
    " the two-sample consistency term; generator along (y_fake - y_teacher) / mean|x_s - y_teacher|"
)
_SOURCE = "arXiv 2605.26108, section AC-DMD; public code Harahan/RTDMD (γ = 0.01)"
_OURS = "rates, ratio of updates, weighting of the ambient loss, batch: the preset's, as in every stage-one method"


def _consistency(name: str, weight: float, title: str, source: str = _SOURCE) -> Method:
    return Method(
        name=name,
        stage="train_acdmd",
        title=title,
        source=source,
        equation=_EQUATION,
        settings={"consistency": {"weight": weight}},
        ours=_OURS,
        departs=("renoising times without atoms, non-finite values stop the run (rtdmd/train/acdmd.py)",),
    )


_RUNS_OWN = ("generator_optimizer", "fake_optimizer", "warmup", "adapter_init", "ema_decay", "ema_per")
_ESTIMATOR = {key: value for key, value in PUBLISHED.items() if key not in _RUNS_OWN}

METHODS = (
    Method(
        name="acdmd-published",
        stage="train_acdmd",
        title="AC-DMD, the public code's estimator",
        source=_SOURCE,
        equation=_EQUATION,
        settings=_ESTIMATOR,
        ours="rates, average, optimizers and the start of adapters are the preset's: 3e-5 is for 2 B parameters",
        departs=("`rtdmd params world --recipe published` has its rates too",),
    ),
    _consistency("acdmd", 0.01, "AC-DMD, γ = 0.01"),
    _consistency("admd", 0.0, "A-DMD: no consistency term, γ = 0"),
    *(
        _consistency(f"acdmd-{weight:g}", weight, f"AC-DMD, γ = {weight:g}", "arXiv 2605.26108, ablation of γ")
        for weight in (0.001, 0.005, 0.1)
    ),
)
