"""Advantage-weighted matching: the flow-matching loss of the rollout's images, weighed by their advantages."""

from typing import Any

from rtdmd.methods._card import Method

_SOURCE = "AWM (arXiv 2509.25050); public code scxue/advantage_weighted_matching, its SD3.5-M settings"
_EQUATION = "A σ/p ℓ^p, ℓ = mean |v_θ(x_σ) - v|² on x_σ = (1-σ) x̂_0 + σ ε, v = ε - x̂_0, p = ¼, A over its clip of 5"
_OURS = "weights, rates, levels σ drawn from the sampler's own (theirs: six of fourteen)"
_SETTINGS: dict[str, Any] = {"awm_power": 0.25, "advantage_clip": 5.0, "share_noise": False, "share_initial": False}
_DEPARTS = (
    "one update an epoch, on-policy, where the clipped ratio is 1; theirs makes two, the second off-policy, clip 1",
    "σ is a level of the few-step sampler, since a few-step student is no velocity field in between",
)

METHODS = (
    Method(
        name="awm",
        stage="train_rtdmd",
        title="advantage-weighted matching alone",
        source=_SOURCE,
        equation=_EQUATION,
        settings={
            **_SETTINGS,
            "weights": {"policy": 0.0, "matching": 0.0, "backprop": 0.0, "awm": 1.0},
            "fake_updates_per_epoch": 0,
        },
        ours=_OURS,
        departs=(
            *_DEPARTS,
            "without their pulls on the velocity: 0.003 to the first student (GenEval), 1 to a recent average",
        ),
    ),
    Method(
        name="dmd-awm",
        stage="train_rtdmd",
        title="matching and advantage-weighted matching",
        source=f"{_SOURCE}, beside DMD",
        equation=_EQUATION,
        settings=_SETTINGS | {"weights": {"policy": 0.0, "matching": 0.4, "backprop": 0.0, "awm": 1.0}},
        ours=_OURS,
        departs=(*_DEPARTS, "matching holds the student, in the place of their pulls on the velocity"),
    ),
)
