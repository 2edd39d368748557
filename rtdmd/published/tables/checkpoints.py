"""The four published checkpoints, judged by us: what agrees here needs no training to be compared."""

from rtdmd.published.table import Row, Table
from rtdmd.published.tables._columns import ABLATION
from rtdmd.published.tables._runs import (
    FLUX1_CHECKPOINT,
    FLUX2_4B_CHECKPOINT,
    FLUX2_9B_CHECKPOINT,
    SAME,
    SD35M_CHECKPOINT,
)

TABLE = Table(
    "The published checkpoints, evaluated by us",
    "arXiv 2605.26108, tables 2 and 4; README of Harahan/RTDMD, which has no figures of FLUX.2 9B and FLUX.1-dev",
    ABLATION,
    (
        Row("SD3.5-M", 4, "0.2843 23.57 0.3456", SD35M_CHECKPOINT, "imported"),
        Row("FLUX.2 4B", 4, "0.3219 23.9642 0.3516", FLUX2_4B_CHECKPOINT, "imported"),
        Row("FLUX.2 9B", 4, "- - -", FLUX2_9B_CHECKPOINT, "imported"),
        Row("FLUX.1-dev", 4, "- - -", FLUX1_CHECKPOINT, "imported"),
    ),
    (SAME,),
)
