"""Distribution matching alone in stage two: what the same time gives without any reward."""

from rtdmd.methods._card import Method

METHODS = (
    Method(
        name="matching-only",
        stage="train_rtdmd",
        title="matching alone, the control",
        source="ours",
        equation="generator along (y_fake - y_teacher) / mean|x_s - y_teacher|, at a random step of the rollout",
        settings={"weights": {"policy": 0.0, "matching": 1.0, "backprop": 0.0}},
        ours="all of it",
    ),
)
