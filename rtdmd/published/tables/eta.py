"""SD3.5-M, the sampler's stochasticity η, in training and in evaluation."""

from rtdmd.published.table import NOT_GIVEN, Row, Run, Table
from rtdmd.published.tables._columns import ABLATION
from rtdmd.published.tables._runs import REWARDS, SD35M

_NONE = " ".join([NOT_GIVEN] * len(ABLATION))
_WORDS = "published in words: every η of 0.8 and more behaves alike; η = 1 with s = 0 is DMD2"


def noisy(eta: float) -> Row:
    """The published run at another η, in both stages and in evaluation."""
    run = Run(f"sd35m-eta-{eta:g}", "sd35m", f"SD3.5-M, η = {eta:g}", changes={"model": {"eta": eta}})
    return Row(f"η = {eta:g}", 4, _NONE, run)


ROWS = (
    *(noisy(eta) for eta in (0.2, 0.4, 0.6, 0.8)),
    Row("η = 0.9", 4, "0.2843 23.57 0.3456", SD35M),
    noisy(1.0),
)

TABLE = Table(
    "SD3.5-M, stochasticity η of the sampler",
    "arXiv 2605.26108, ablation of the sampler",
    ABLATION,
    ROWS,
    (_WORDS, REWARDS),
)
