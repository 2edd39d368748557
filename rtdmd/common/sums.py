"""Sums of floats whose last digit does not depend on Python's version."""

from __future__ import annotations

from collections.abc import Iterable


def sum_in_order(values: Iterable[float]) -> float:
    """Sum from left to right, rounded after each addend; 0.0 for nothing.

    The built-in `sum` does the same up to Python 3.11 and carries the rounding error along since 3.12, so a result that
    is written to a file uses this one.
    """
    total = 0.0
    for value in values:
        total += value
    return total
