"""`rtdmd variance`: how noisy and how wrong every estimator of the reward's gradient is, at one price.

    rtdmd variance --out results/comparison/variance.csv     on the stage-one student of this folder

Each row is an estimator of ∇E r(x̂_0), r the first differentiable reward of train_rtdmd.rewards, over --prompts training
prompts. Noise (tr Cov) and relative mean squared error are of an estimate that costs 1000 forward passes of the
generator, in units of the gradient's squared length; scale, bias and cosine are of its mean against the unbiased
"policy + last step" (1, 0 and 1 where it is unbiased too). Each has a jackknife standard error, which a larger --cost
makes smaller: every row is measured with that many passes, and the reference with four times as many.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.errors import UserError

if TYPE_CHECKING:
    import torch

    from rtdmd.study.estimators import Bench

FIGURES = ("noise", "scale", "bias", "cosine", "error")
HEADER = ("estimator", "rounds", "passes", *(f"{name}{end}" for name in FIGURES for end in ("", "_se")))
UNIT = 1000.0  # passes of the estimate whose noise is told
REFERENCE_SHARE = 4  # the reference's cost over a row's: it stands in every row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Prompts, price, and where the table goes."""
    parser.add_argument("--prompts", type=int, default=16, help="the same in all rounds (default: %(default)s)")
    parser.add_argument("--cost", type=float, default=1e4, help="forward passes a row (default: %(default)g)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these estimators (default: all)")
    parser.add_argument("--out", type=Path, help="CSV file; without it the table is only printed")


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Measure and print a row an estimator. UserError for a price below 0 or an unknown name."""
    from rtdmd.study.estimators import ESTIMATORS

    unknown = [name for name in arguments.only if name not in ESTIMATORS]
    if arguments.cost <= 0 or unknown:
        raise UserError(
            f"--cost {arguments.cost:g} --only {unknown}; allowed: above 0, and names among"
            f" {', '.join(repr(name) for name in ESTIMATORS)}"
        )
    from rtdmd.config import load_params
    from rtdmd.evaluate.tables import csv_text
    from rtdmd.files import write_atomic
    from rtdmd.study.estimators import open_bench
    from rtdmd.study.moments import Figure

    rows = []
    bench = open_bench(load_params(root / "params.yaml"), root, arguments.prompts)
    print(f"{HEADER[0]:50}{'rounds':>8}" + "".join(f"{name:>16}" for name in FIGURES), flush=True)
    for row in measure(bench, arguments.only or list(ESTIMATORS), arguments.cost):
        rows.append(row)
        pairs = [str(Figure(value, error)) for value, error in zip(row[3::2], row[4::2], strict=True)]
        print(f"{row[0]:50}{row[1]:>8}" + "".join(f"{pair:>16}" for pair in pairs), flush=True)
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(arguments.out, csv_text(HEADER, rows))


def measure(bench: Bench, names: list[str], cost: float) -> Iterator[list[Any]]:
    """Rows of the table; the reference's own row is of other rounds than those it is compared with."""
    from rtdmd.study.estimators import REFERENCE, price
    from rtdmd.study.moments import moments

    reference = collected(bench, REFERENCE, REFERENCE_SHARE * cost, "reference")
    for name in names:
        rounds, passes = collected(bench, name, cost, "study"), price(bench, name)
        found = moments(rounds, reference, passes / UNIT)
        pairs = (getattr(found, name) for name in FIGURES)
        yield [name, len(rounds), passes, *(part for pair in pairs for part in (pair.value, pair.error))]


def collected(bench: Bench, name: str, cost: float, stream: str) -> torch.Tensor:
    """As many rounds (R, P) of an estimator as ``cost`` pays for."""
    import torch

    from rtdmd.progress import progress
    from rtdmd.study.estimators import one_round, rounds_within

    count = rounds_within(bench, name, cost)
    shown = progress(range(count), desc=f"{name} ({stream})", unit="round")
    return torch.stack([one_round(bench, name, number, stream) for number in shown])
