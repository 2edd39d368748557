"""RTDMD: stage two of the paper as its public code has it, as the oracle corrects it, and as the preset tunes it."""

from rtdmd.config.train_rtdmd import CORRECTED, PUBLISHED
from rtdmd.methods.card import Method

_SOURCE = "arXiv 2605.26108, section RTDMD; public code Harahan/RTDMD"
_EQUATION = (
    "∇KL(p_θ ‖ p_ψ exp(βr)) = ∇KL(p_θ ‖ p_ψ) - β ∇E r(x̂_0): matching, SubGRPO on the stochastic steps, reward"
    " back-propagation through the last step"
)
_RUNS_OWN = ("lr_generator", "lr_fall", "ema_decay", "ema_every", "weight_decay", "betas", "max_grad_norm")
_ESTIMATOR = {key: value for key, value in PUBLISHED.items() if key not in _RUNS_OWN}

METHODS = (
    Method(
        "rtdmd", "train_rtdmd", "RTDMD with the preset's settings", _SOURCE, _EQUATION, {},
        "steps, weights, unit-norm scaling and rates of the preset (docs/findings.md)",
        ("matching acts at a random step; true Gaussian log-density; each term's gradient at norm 1",),
    ),
    Method(
        "rtdmd-published", "train_rtdmd", "RTDMD, the public code's estimator", _SOURCE, _EQUATION, _ESTIMATOR,
        "step size, average and optimizer are the preset's: the public code's 3e-6 is for models of 2 B parameters",
        ("`rtdmd params world --recipe published` has its rates too",),
    ),
    Method(
        "rtdmd-corrected", "train_rtdmd", "RTDMD, corrected on the oracle", "ours (docs/proved.md)",
        _EQUATION + "; matching is also a reward of the stochastic steps, advantages keep the rewards' units",
        {**CORRECTED, "trained_steps": 2, "share_initial": False},
        "all of it; weights and unit-norm scaling are the preset's, so that no fixed point is claimed",
    ),
)  # fmt: skip
