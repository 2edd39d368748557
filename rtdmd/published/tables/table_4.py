"""SD3.5-M, methods of stage two."""

from rtdmd.published.table import Row, Run, Table
from rtdmd.published.tables._columns import ABLATION
from rtdmd.published.tables._runs import PUBLISHED, REWARDS, SAME, SD35M, SD35M_CHECKPOINT


def by(method: str, about: str) -> Run:
    """The published stage one, then another method of stage two."""
    return Run(f"sd35m-{method}", "sd35m", f"SD3.5-M, {about}", method=method)


GRPO = by("grpo", "GRPO on all three stochastic steps")
ONE = by("subgrpo-1", "SubGRPO with M = 1")
ONE_LAST = by("subgrpo-1-last", "SubGRPO with M = 1 and the last step")
TWO = by("subgrpo-2", "SubGRPO with M = 2")

ROWS = (
    Row("none: stage one alone", 4, "0.2822 22.51 0.2942", SD35M, "train_acdmd"),
    Row("GRPO", 4, "0.2759 23.31 0.3268", GRPO),
    Row("SubGRPO, M = 1", 4, "0.2798 23.33 0.3332", ONE),
    Row("SubGRPO, M = 1, last step", 4, "0.2802 23.42 0.3318", ONE_LAST),
    Row("SubGRPO, M = 2", 4, "0.2839 23.45 0.3459", TWO),
    Row("SubGRPO, M = 2, last step", 4, "0.2843 23.57 0.3456", SD35M),
    Row(f"SubGRPO, M = 2, last step: {PUBLISHED}", 4, "0.2843 23.57 0.3456", SD35M_CHECKPOINT, "imported"),
)

TABLE = Table("SD3.5-M, methods of stage two", "arXiv 2605.26108, table 4", ABLATION, ROWS, (REWARDS, SAME))
