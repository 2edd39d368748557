"""GDMD: the matching direction read as a target, weighed by the reward that the target gains."""

from rtdmd.methods._card import Method

METHODS = (
    Method(
        name="gdmd",
        stage="train_rtdmd",
        title="GDMD: matching weighed by its reward's gain",
        source="arXiv 2604.19009",
        equation=(
            "x_tar = x̂_0 - g; matching direction times 1 + γ clip((R(x_tar) - R(x̂_0)) / Z, ±1): the NFT loss at x_tar"
            " beside DMD, on-policy (tests/flow/test_nft.py)"
        ),
        settings={
            "weights": {"policy": 0.0, "matching": 1.0, "backprop": 0.0},
            "matching_path": "last_step",
            "matching_gain": 1.0,
            "share_noise": False,
            "share_initial": False,
        },
        ours="γ = 1, λ = 1, b = 1: the paper gives none of them; Z over the epoch's whole rollout",
        departs=(
            "one update an epoch, where the NFT loss and the weight are the same gradient up to the levels' factor",
            "a group's images differ by their rollouts; the paper's different fake-score versions are left out",
        ),
    ),
)
