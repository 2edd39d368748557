"""SD3-M on DrawBench."""

from rtdmd.published.table import Row, Run, Table
from rtdmd.published.tables._columns import AESTHETIC, CLIPSCORE, HPSV2, IMAGEREWARD, PICKSCORE

_FIRST = (
    "the paper's first version trains on HPSv2 and CLIPScore with prompts of text-to-image-2M; ours are the preset's"
    " rewards and prompts, the public code's"
)
_GDMD = "GDMD's paper gives no λ, γ and b, and its checkpoint is not published: ours is `rtdmd methods gdmd`"

SD3M = Run("sd3m", "sd3m", "SD3-M as published", departs=(_FIRST,))
GDMD = Run("sd3m-gdmd", "sd3m", "SD3-M, stage two by GDMD", method="gdmd", departs=(_GDMD,))

ROWS = (
    Row("SD3-M teacher, guided", 100, "0.2936 5.5711 22.3236 0.2810 1.0759", SD3M, "teacher"),
    Row("GDMD", 4, "0.2930 5.8728 22.4614 0.3076 1.2702", GDMD),
    Row("R_dm", 4, "0.2936 5.8769 22.5783 0.2957 1.2897", missing="known from its abstract alone"),
    Row("RTDMD", 4, "0.3161 5.9642 22.8593 0.3211 1.3024", SD3M),
)

TABLE = Table(
    "SD3-M, DrawBench",
    "arXiv 2605.26108, table 1; README of Harahan/RTDMD",
    (CLIPSCORE, AESTHETIC, PICKSCORE, HPSV2, IMAGEREWARD),
    ROWS,
)
