"""DMDR: matching and a reward loss together, with its two annealed changes; the reward loss is ReFL, GRPO or NFT.

Written from the paper; `dmdr-published-*` are what its public code (vvvvvjdy/dmdr, train_t2i/sd3) does after its cold
start.
"""

from typing import Any

from rtdmd.methods._card import Method

_SOURCE = "DMDR (arXiv 2511.13649)"
_PUBLISHED_SOURCE = "public code vvvvvjdy/dmdr, train_t2i/sd3 after its cold start, SD3.5-L's settings"
_ANNEALED = (
    "; early on the teacher carries the fake score's adapter at 0.75 · ½(1 + cos πp), and t ~ Beta(4, 1.5) fades to"
    " uniform"
)
_OURS = (
    "weight of the reward loss (DMDR's w), the length of the annealing (annealing.epochs); rates, scaling and rollout"
    " are the preset's"
)
_ANNEALING = {"annealing": {"guidance": 0.75, "renoise": True, "epochs": 40}, "fake_adapter": "continued"}
_DEPARTS = (
    "starts from stage one's student like every stage-two method, and is annealed there; in the public code"
    " both are over when the reward comes (after 2000 updates of a cold start)",
    "0.75 is of the fake score's own strength; the public code has 0.5 (SiT 0.75) where the fake score has 2",
)

_PUBLISHED_EQUATION = (
    "x_σ = (1-σ) x_K + σ ε of the rollout's image at a level σ of the sampler, x̂_0 = x_σ - σ v_θ; ½ mean |x̂_0 -"
    " sg(x̂_0 - g)|² + "
)
_PUBLISHED: dict[str, Any] = {
    "annealing": {"guidance": 0.0, "renoise": False, "epochs": 0},
    "last_step_from": "renoised",
    "matching_path": "last_step",
    "backprop_at": "last_step",
    "normalise_matching": True,
    "gradient_scaling": "none",
    "update_order": "fake_first",
    "fake_updates_per_epoch": 5,
    "fake_samples": "data",
    "consistency": {"weight": 0.0},
    "share_noise": False,
    "share_initial": False,
}
_PUBLISHED_OURS = (
    "rates, average (theirs has none), number of images: the preset's; its rewards, of the preset's weights"
)
_PUBLISHED_DEPARTS = (
    "one level per update for all images, theirs one for each; the rollout is the preset's sampler, theirs the ODE",
    "five fake-score updates on one rollout, theirs each on one of its own; ambient weights, theirs a plain mean",
    "one hinge relu(3 - Σ w r), theirs relu(0.7 - r) for each reward, DFN CLIP and HPSv2.1; neither is ever at rest",
    "the teacher's guidance is fixed, theirs is drawn within 0.5 of 4 (SD3.5-L; SD3-M 7), which guidance_range has",
)


def _dmdr(kind: str, title: str, equation: str, settings: dict[str, Any], *departs: str) -> Method:
    return Method(
        name=f"dmdr-{kind}",
        stage="train_rtdmd",
        title=title,
        source=_SOURCE,
        equation=equation + _ANNEALED,
        settings=_ANNEALING | settings,
        ours=_OURS,
        departs=(*departs, *_DEPARTS),
    )


METHODS = (
    _dmdr(
        "refl",
        "DMDR with ReFL",
        "matching - w r(x̂_0) with x̂_0 of a random step of the rollout, back-propagated",
        {"weights": {"policy": 0.0, "matching": 0.4, "backprop": 0.3}, "backprop_at": "random_step"},
        "ReFL (arXiv 2304.05977) takes a late step of a long chain; here any of the four",
    ),
    _dmdr(
        "grpo",
        "DMDR with GRPO",
        "matching + w Σ_k A ∇log p_θ(x_{k+1} | x_k)",
        {
            "weights": {"policy": 1.0, "matching": 0.4, "backprop": 0.0},
            "candidate_steps": [0, 1, 2],
            "trained_steps": 3,
            "share_noise": False,
            "share_initial": False,
        },
        "CPS transitions, true Gaussian log-density",
    ),
    _dmdr(
        "nft",
        "DMDR with NFT",
        "matching + w (r |v⁺ - v|² + (1-r) |v⁻ - v|²)",
        {
            "weights": {"policy": 0.0, "matching": 0.4, "backprop": 0.0, "nft": 1.0},
            "share_noise": False,
            "share_initial": False,
        },
        "NFT at the sampler's own levels, as in dmd-nft",
    ),
    Method(
        name="dmdr-published-refl",
        stage="train_rtdmd",
        title="DMDR with ReFL as its code has it",
        source=_PUBLISHED_SOURCE,
        equation=_PUBLISHED_EQUATION + "0.1 relu(m - r(x̂_0))",
        settings=_PUBLISHED | {"weights": {"policy": 0.0, "matching": 1.0, "backprop": 0.1}},
        ours=_PUBLISHED_OURS,
        departs=(
            *_PUBLISHED_DEPARTS,
            "no words before HPSv2's prompts (theirs: Realistic photo); SD3-M's weights are 0.3",
        ),
    ),
    Method(
        name="dmdr-published-srpo",
        stage="train_rtdmd",
        title="DMDR with SRPO as its code has it",
        source=_PUBLISHED_SOURCE,
        equation=_PUBLISHED_EQUATION
        + "5 relu(m - (1+k) r(x̂_0, liked words. prompt) + r(x̂_0, disliked words. prompt)), k = 0.1",
        settings={
            **_PUBLISHED,
            "weights": {"policy": 0.0, "matching": 1.0, "backprop": 5.0},
            "relative": {
                "strength": 0.1,
                "liked": ["Natural-lighting", "Detailed", "Realistic"],
                "disliked": ["Painting", "CG Render", "Oil"],
            },
        },
        ours=_PUBLISHED_OURS,
        departs=(
            *_PUBLISHED_DEPARTS,
            "every differentiable reward is relative, theirs HPSv2 alone beside 0.1 of a plain CLIP",
            "the embedded world's text encoder does not know the words, which say nothing there",
        ),
    ),
)
