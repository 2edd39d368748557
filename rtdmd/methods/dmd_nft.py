"""DMD + DiffusionNFT: matching, and negative-aware fine-tuning on the images of the roll-out."""

from rtdmd.methods._card import Method

METHODS = (
    Method(
        "dmd-nft", "train_rtdmd", "matching and DiffusionNFT",
        "DiffusionNFT (arXiv 2509.16117) beside DMD",
        "r |v⁺ - v|² + (1-r) |v⁻ - v|² on x_σ = (1-σ) x̂_0 + σ ε, v = ε - x̂_0, v± = v_old ± b (v_θ - v_old), r = ½ +"
        " ½ clip(A, ±1)",
        {
            "weights": {"policy": 0.0, "matching": 0.4, "backprop": 0.0, "nft": 1.0},
            "share_noise": False, "share_initial": False,
        },
        "b = 1, weights, rates, levels σ drawn from the sampler's own",
        (
            "σ is a level of the few-step sampler, since a few-step student is no velocity field in between",
            "v_old is the student itself: one update an epoch, fully on-policy, so no averaged old policy",
            "plain velocity loss without the public code's self-normalised weighting; the roll-out shares no noise",
        ),
    ),
)  # fmt: skip
