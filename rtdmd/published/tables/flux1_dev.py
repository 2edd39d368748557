"""FLUX.1-dev on all nine figures: a checkpoint is published, and none of its figures."""

from rtdmd.published.table import NOT_GIVEN, Row, Run, Table
from rtdmd.published.tables._columns import NINE
from rtdmd.published.tables._runs import FLUX1_CHECKPOINT, PUBLISHED

_NONE = " ".join([NOT_GIVEN] * len(NINE))

FLUX1 = Run("flux1-dev", "flux1-dev", "FLUX.1-dev as published")

TABLE = Table(
    "FLUX.1-dev, all nine",
    "README of Harahan/RTDMD, which has the checkpoint alone",
    NINE,
    (
        Row("FLUX.1-dev teacher, guided", 50, _NONE, FLUX1, "teacher"),
        Row(f"RTDMD: {PUBLISHED}", 4, _NONE, FLUX1_CHECKPOINT, "imported"),
        Row("RTDMD", 4, _NONE, FLUX1),
    ),
)
