"""Distribution matching alone in stage two: what the same time gives without any reward."""

from rtdmd.methods._card import Method

METHODS = (
    Method(
        "matching-only", "train_rtdmd", "matching alone, the control", "ours",
        "generator along (y_fake - y_teacher) / mean|x_s - y_teacher|, at a random step of the roll-out",
        {"weights": {"policy": 0.0, "matching": 1.0, "backprop": 0.0}}, "all of it",
    ),
)  # fmt: skip
