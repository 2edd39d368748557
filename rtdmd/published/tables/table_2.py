"""FLUX.2-klein 4B on all nine figures."""

from rtdmd.published.table import NOT_GIVEN, Row, Run, Table
from rtdmd.published.tables._columns import NINE
from rtdmd.published.tables._runs import FLUX2_4B_CHECKPOINT, FLUX2_9B_CHECKPOINT, PUBLISHED, SAME

_PASSES = "the teachers' 50 passes are read as 50 steps, each guided (table 1 counts a guided step twice)"
_NONE = " ".join([NOT_GIVEN] * len(NINE))
_NO_BACKBONE = "there is no backbone for Z-Image"


FLUX4 = Run("flux2-klein-4b", "flux2-klein-4b", "FLUX.2-klein 4B as published", departs=(_PASSES,))
FLUX9 = Run(
    "flux2-klein-9b-released",
    "flux2-klein-9b",
    "FLUX.2-klein 9B, the released models: nothing is trained",
    departs=(_PASSES,),
)

BASE4 = "0.8538 0.2834 5.3333 22.3938 0.2771 11.7025 0.7631 0.2207 0.6133"
BASE9 = "1.0021 0.2962 5.2030 22.6382 0.2800 11.6883 0.7568 0.3557 0.7432"
Z_IMAGE = "0.7841 0.2841 5.2488 22.2118 0.2714 10.0857 0.6563 0.3012 0.7373"
TURBO = "0.9696 0.2764 5.2894 22.7994 0.2954 12.9136 0.7562 0.3530 0.7539"
KLEIN4 = "1.0506 0.2864 5.2658 22.7370 0.2890 12.9295 0.7722 0.2403 0.6375"
KLEIN9 = "1.1998 0.2919 5.3730 23.0178 0.2991 13.2955 0.7814 0.3570 0.7566"
TDM_R1 = "1.1543 0.2836 5.2450 22.8202 0.3064 13.4349 0.7737 0.4073 0.7665"
RTDMD = "1.3712 0.3219 5.7746 23.9642 0.3516 15.5772 0.9046 0.2755 0.6858"

TABLE = Table(
    "FLUX.2-klein 4B, all nine",
    "arXiv 2605.26108, table 2; README of Harahan/RTDMD",
    NINE,
    (
        Row("FLUX.2 4B teacher", 50, BASE4, FLUX4, "teacher"),
        Row("FLUX.2 9B teacher", 50, BASE9, FLUX9, "teacher"),
        Row("Z-Image 6B", 50, Z_IMAGE, missing=_NO_BACKBONE),
        Row("Z-Image-Turbo 6B", 4, TURBO, missing=_NO_BACKBONE),
        Row("FLUX.2 4B as released", 4, KLEIN4, FLUX4, "student_base"),
        Row("FLUX.2 9B as released", 4, KLEIN9, FLUX9, "student_base"),
        Row("Z-Image 6B, TDM-R1", 4, TDM_R1, missing=_NO_BACKBONE),
        Row("FLUX.2 4B, RTDMD", 4, RTDMD, FLUX4),
        Row(f"FLUX.2 4B, RTDMD: {PUBLISHED}", 4, RTDMD, FLUX2_4B_CHECKPOINT, "imported"),
        Row(f"FLUX.2 9B, RTDMD: {PUBLISHED}", 4, _NONE, FLUX2_9B_CHECKPOINT, "imported"),
    ),
    (SAME, "no figures of FLUX.2 9B with RTDMD are published"),
)
