"""TDM-R1: a surrogate reward learned from groups' preferences, and a generator that follows it and the teacher."""

from rtdmd.methods._card import Method

METHODS = (
    Method(
        name="tdm-r1",
        stage="train_rtdmd",
        title="TDM-R1: a learned surrogate reward and a marginal KL",
        source=(
            "TDM-R1 (arXiv 2603.07700); public code Luo-Yihong/TDM-R1, scripts/train_tdmr1_pub.py, GenEval's settings"
        ),
        equation=(
            "surrogate v_φ, at first the teacher: σ(S) A |v_φ(x_t) - u|² + 0.001 |v_φ - v_ψ|²,"
            " S = β/G Σ A (|v_φ - u|² - |v_ψ - u|²) over a group that shares time and noise, late steps more often;"
            " generator: matching to the teacher at 0.3 of its guidance (guidance counts as a reward) + 0.7 along"
            " v_φ (guided) - v_ψ"
        ),
        settings={
            "weights": {"policy": 0.0, "matching": 1.0, "backprop": 0.0, "surrogate": 0.7},
            "matching_path": "random_step",
            "matching_guidance": 0.3,
            "fake_samples": "chain",
            "share_noise": False,
            "share_initial": False,
            "update_order": "fake_first",
            "baseline": "group_mean",
            "advantage_std": "batch",
            "advantage_clip": 5.0,
            "surrogate": {
                "preference": 1.0,
                "anchor": 0.001,
                "bound": 0.05,
                "train_min_sigma": 0.55,
                "reward_min_sigma": 0.25,
                "guidance": 0.43,
            },
        },
        ours="rates, scaling of the terms, images and prompts of an update: the preset's",
        departs=(
            "the rollout is the preset's stochastic sampler; theirs is deterministic, so that an image's reward is"
            " that of all its steps (model.eta: 0 has it)",
            "one random step an update for each term, where the public code accumulates two of four; the sample x_s is"
            " moved, by our projections and their distance, where theirs moves x̂_0, by estimates x̂_0",
            "times uniform in σ; theirs are uniform before the shift of 3, one for the whole batch",
            "the fake score learns ambient targets; theirs regresses to the step's x̂_0, with 0.02 |v_fake - v_ψ|²",
            "no clip against the surrogate's own average (which keeps at most 0.3 of what was, so that the ratio hardly"
            " leaves 1); the bound on the distance to the teacher is kept",
            "starts from stage one's student in the place of TDM's",
        ),
    ),
)
