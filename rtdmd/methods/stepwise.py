"""Stepwise credit: each stochastic step rewarded by what its successor's x̂_0 gains."""

from typing import Any

from rtdmd.methods._card import Method

_SETTINGS: dict[str, Any] = {
    "candidate_steps": [0, 1, 2],
    "trained_steps": 3,
    "share_noise": False,
    "share_initial": False,
    "weights": {"policy": 1.0, "matching": 0.0, "backprop": 0.0},
    "fake_updates_per_epoch": 0,
}
_OURS = "normalisation of each step's credit in its group as of a reward; rates and scaling are the preset's"

METHODS = (
    Method(
        name="stepwise",
        stage="train_rtdmd",
        title="GRPO with stepwise gains",
        source="Stepwise-Flow-GRPO (arXiv 2603.28718)",
        equation="Σ_k A_k ∇log p_θ(x_{k+1} | x_k), A_k from r(x̂_0(x_{k+1})) - r(x̂_0(x_k)), x̂_0(x) = x - σ v(x, σ)",
        settings=_SETTINGS | {"credit": "gain"},
        ours=_OURS,
        departs=(
            "CPS transitions in place of the paper's SDE",
            "greedy: no gradient of one objective (flow/credit.py)",
        ),
    ),
    Method(
        name="stepwise-to-go",
        stage="train_rtdmd",
        title="GRPO with the gains still to come",
        source="ours",
        equation="the same with A_k from r(x̂_0) - r(x̂_0(x_k)): a baseline of its own for every image, unbiased",
        settings=_SETTINGS | {"credit": "to_go"},
        ours=_OURS,
    ),
)
