"""DRaFT-1: reward back-propagation through the last step and nothing else."""

from rtdmd.methods._card import Method

METHODS = (
    Method(
        name="draft-1",
        stage="train_rtdmd",
        title="last-step back-propagation only",
        source="DRaFT (arXiv 2309.17400), truncated to K = 1",
        equation="∇ r(x̂_0) through decoder and the last step of the chain",
        settings={"weights": {"policy": 0.0, "matching": 0.0, "backprop": 1.0}, "fake_updates_per_epoch": 0},
        ours="rates and the number of images per update: the preset's",
        departs=(
            "the loss is relu(m - Σ w r) with the public RTDMD code's margin, never active at the preset's weights",
            "differentiable rewards only: the verifier is not seen",
        ),
    ),
)
