"""DMDR: matching and a reward loss together, with its two early helps; the reward loss is ReFL, GRPO or NFT."""

from typing import Any

from rtdmd.methods._card import Method

_SOURCE = "DMDR (arXiv 2511.13649)"
_HELPS = (
    "; early on the teacher carries the fake score's adapter at 0.75 · ½(1 + cos πp), and t ~ Beta(4, 1.5) fades to"
    " uniform"
)
_OURS = (
    "weight of the reward loss (DMDR's w), the length of the early helps (dynamic.epochs), linear fading of the Beta"
    " law; rates, scaling and roll-out are the preset's"
)
_DYNAMIC = {"dynamic": {"guidance": 0.75, "renoise": True, "epochs": 40}, "fake_adapter": "continued"}
_DEPARTS = (
    "starts from stage one's student like every stage-two method; DMDR trains both objectives from the teacher on,"
    " where its early helps matter more",
)


def _dmdr(kind: str, title: str, equation: str, settings: dict[str, Any], *departs: str) -> Method:
    return Method(
        f"dmdr-{kind}", "train_rtdmd", title, _SOURCE, equation + _HELPS, _DYNAMIC | settings, _OURS,
        (*departs, *_DEPARTS),
    )  # fmt: skip


METHODS = (
    _dmdr(
        "refl", "DMDR with ReFL", "matching - w r(x̂_0) with x̂_0 of a random step of the roll-out, back-propagated",
        {"weights": {"policy": 0.0, "matching": 0.4, "backprop": 0.3}, "backprop_at": "random_step"},
        "ReFL (arXiv 2304.05977) takes a late step of a long chain; here any of the four",
    ),
    _dmdr(
        "grpo", "DMDR with GRPO", "matching + w Σ_k A ∇log p_θ(x_{k+1} | x_k)",
        {
            "weights": {"policy": 1.0, "matching": 0.4, "backprop": 0.0}, "candidate_steps": [0, 1, 2],
            "trained_steps": 3, "share_noise": False, "share_initial": False,
        },
        "CPS transitions, true Gaussian log-density",
    ),
    _dmdr(
        "nft", "DMDR with NFT", "matching + w (r |v⁺ - v|² + (1-r) |v⁻ - v|²)",
        {
            "weights": {"policy": 0.0, "matching": 0.4, "backprop": 0.0, "nft": 1.0},
            "share_noise": False, "share_initial": False,
        },
        "NFT at the sampler's own levels, as in dmd-nft",
    ),
)  # fmt: skip
