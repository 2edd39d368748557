"""A sum of floats has the same bits under every Python that the package runs on."""

from __future__ import annotations

from rtdmd.common.sums import sum_in_order
from rtdmd.train.engine.journal import mean_row


def test_each_addend_is_rounded_in_turn() -> None:
    """The built-in sum says 1.0 since Python 3.12."""
    assert sum_in_order([0.1] * 10) == 0.9999999999999999
    assert sum_in_order([1e16, 1.0, -1e16]) == 0.0
    assert sum_in_order([]) == 0.0


def test_a_row_of_curves_csv_is_such_a_mean() -> None:
    steps = [{"epoch": float(i), "loss": 0.1} for i in range(10)]
    assert mean_row(steps, "epoch") == {"epoch": 9.0, "loss": 0.09999999999999999}
