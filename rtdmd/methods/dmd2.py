"""DMD2 without its GAN, in the three ways of simulating a few-step student."""

from rtdmd.methods._card import Method

_SOURCE = "DMD2 (arXiv 2405.14867) without GAN loss; arXiv 2605.26108 states it as AC-DMD with s = 0 and γ = 0"
_EQUATION = (
    "x̂_0 of a step of the rollout, t ~ U(0, 1), x_t = (1-t) x̂_0 + t z; fake score on v = z - x̂_0; generator along"
    " (y_fake - y_teacher) / mean|x̂_0 - y_teacher|"
)
_OURS = "rates, ratio of updates, batch: the preset's; DMD2's two time-scale rule has 5 fake updates, the preset fewer"
_DMD2 = {"renoise_from": "data", "consistency": {"weight": 0.0}}
_NO_GAN = "no GAN loss and no regression loss"

METHODS = (
    Method(
        name="dmd2",
        stage="train_acdmd",
        title="DMD2, random stop",
        source=_SOURCE,
        equation=_EQUATION,
        settings=_DMD2,
        ours=_OURS,
        departs=(_NO_GAN, "one fake score for the images of all steps together: a mixture (docs/verification.md, T8)"),
    ),
    Method(
        name="dmd2-last",
        stage="train_acdmd",
        title="DMD2, last step only",
        source=_SOURCE,
        equation=_EQUATION,
        settings=_DMD2 | {"rollout_stop": "last"},
        ours=_OURS,
        departs=(_NO_GAN, "the whole chain is run every time and only its last step is trained"),
    ),
    Method(
        name="dmd2-steps",
        stage="train_acdmd",
        title="DMD2, fake score told the step",
        source="ours (docs/verification.md, T8)",
        equation=_EQUATION,
        settings=_DMD2 | {"fake_per_step": True},
        ours=_OURS,
        departs=(
            _NO_GAN,
            "one fake-score adapter for each step, each trained on its turn; stage two gets the last step's",
        ),
    ),
)
