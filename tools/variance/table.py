"""The table of the variance study: a row per estimator, all at one cost against the same reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.progress import progress
from rtdmd.study.variance_table import FIGURES, REFERENCE, UNIT
from tools.variance.estimators import Bench, one_round, price, rounds_within
from tools.variance.moments import moments, products, squared_length

REFERENCE_SHARE = 4  # the reference's cost over a row's: it stands in every row
SURE = 3  # standard errors that the gradient's squared length has to be above 0


def measure(bench: Bench, names: Sequence[str], cost: float) -> Iterator[list[Any]]:
    """Rows of the table, as HEADER; the reference's own row is of other rounds than those it is compared with.
    UserError where noise hides the gradient at this cost."""
    reference = collected(bench, REFERENCE, REFERENCE_SHARE * cost, "reference")
    base = products(reference, reference)
    length = squared_length(base)
    if not length.value > SURE * length.error:
        raise UserError(
            f"--cost {cost:g}: the gradient's squared length is {length}, not {SURE} standard errors above 0; raise"
            " --cost, or lower --prompts"
        )
    for name in names:
        rounds = collected(bench, name, cost, "study")
        passes = price(bench, name)
        found = moments(products(rounds, rounds), products(rounds, reference), base, passes / UNIT)
        figures = (getattr(found, figure) for figure in FIGURES)
        yield [name, len(rounds), passes, *(part for each in figures for part in (each.value, each.error))]


def collected(bench: Bench, name: str, cost: float, stream: str) -> Tensor:
    """As many rounds (R, P) of an estimator as ``cost`` pays for."""
    count = rounds_within(bench, name, cost)
    shown = progress(range(count), desc=f"{name} ({stream})", unit="round")
    return torch.stack([one_round(bench, name, number, stream) for number in shown])
