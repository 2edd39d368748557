"""SD3.5-M, the weight of the consistency term."""

from rtdmd.published.table import Row, Run, Table
from rtdmd.published.tables._columns import ABLATION
from rtdmd.published.tables._runs import REWARDS, SD35M

_BOTH = "the paper says the weight, not of which stage: ours is that of both"


def weighed(weight: float) -> Run:
    """The published run with another weight in both stages."""
    consistency = {"consistency": {"weight": weight}}
    changes = {"train_acdmd": {"recipe": "custom"} | consistency, "train_rtdmd": consistency}
    return Run(f"sd35m-consistency-{weight:g}", "sd35m", f"SD3.5-M, γ = {weight:g}", changes=changes, departs=(_BOTH,))


ROWS = (
    Row("γ = 0", 4, "0.2753 22.01 0.3188", weighed(0.0)),
    Row("γ = 0.001", 4, "0.2831 22.24 0.3294", weighed(0.001)),
    Row("γ = 0.005", 4, "0.2837 22.85 0.3324", weighed(0.005)),
    Row("γ = 0.01", 4, "0.2843 23.57 0.3456", SD35M),
    Row("γ = 0.1", 4, "0.2846 23.21 0.3362", weighed(0.1)),
)

TABLE = Table("SD3.5-M, weight γ of the consistency term", "arXiv 2605.26108, table 3", ABLATION, ROWS, (REWARDS,))
