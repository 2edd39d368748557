"""DMD + DiffusionNFT: matching, and negative-aware fine-tuning on the images of the rollout."""

from rtdmd.methods._card import Method

_FREE = {"share_noise": False, "share_initial": False}
_DEPARTS = (
    "σ is a level of the few-step sampler, since a few-step student is no velocity field in between",
    "v_old is the student itself: one update an epoch, fully on-policy, so no averaged old policy",
)

METHODS = (
    Method(
        name="dmd-nft",
        stage="train_rtdmd",
        title="matching and DiffusionNFT",
        source="DiffusionNFT (arXiv 2509.16117) beside DMD",
        equation=(
            "r |v⁺ - v|² + (1-r) |v⁻ - v|² on x_σ = (1-σ) x̂_0 + σ ε, v = ε - x̂_0, v± = v_old ± b (v_θ - v_old),"
            " r = ½ + ½ clip(A, ±1)"
        ),
        settings={
            **_FREE,
            "weights": {"policy": 0.0, "matching": 0.4, "backprop": 0.0, "nft": 1.0},
            "nft_form": "plain",
        },
        ours="b = 1, weights, rates, levels σ drawn from the sampler's own, advantages cut at ±1",
        departs=(
            *_DEPARTS,
            "plain velocity loss without the public code's self-normalised weighting (dmd-nft-published)",
        ),
    ),
    Method(
        name="dmd-nft-published",
        stage="train_rtdmd",
        title="matching and DiffusionNFT as its code has it",
        source="public code NVlabs/DiffusionNFT, beside DMD",
        equation=(
            "5/b (r |x̂⁺ - x̂_0|²/m⁺ + (1-r) |x̂⁻ - x̂_0|²/m⁻) with x̂± = x_σ - σ v±, m± = mean |x̂± - x̂_0| held,"
            " r = ½ + A/10, A cut at ±5; b = 1 (GenEval, PickScore, HPSv2; OCR and several rewards 0.1)"
        ),
        settings={
            **_FREE,
            "weights": {"policy": 0.0, "matching": 0.4, "backprop": 0.0, "nft": 1.0},
            "nft_form": "published",
            "nft_strength": 1.0,
            "advantage_clip": 5.0,
        },
        ours="weights, rates, levels σ drawn from the sampler's own (theirs: the 10 of a second-order sampler)",
        departs=(
            *_DEPARTS,
            "matching holds the student, in the place of a KL of its velocity to the first student's of 1e-4",
        ),
    ),
)
