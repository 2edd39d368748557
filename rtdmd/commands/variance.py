"""`rtdmd variance`: how noisy and how wrong every estimator of the reward's gradient is, at one price.

    rtdmd variance --out results/comparison/variance.csv     on the stage-one student of this folder

Each row is an estimator of ∇E r(x̂_0), r the first differentiable reward of train_rtdmd.rewards, over --prompts
training prompts. Noise is tr Cov of an estimate that costs 1000 forward passes of the generator (a round's, scaled to
that price), scale, bias and cosine are of its mean against the unbiased "policy + last step": 1, 0 and 1 where it is
unbiased too; all in units of the gradient's squared length. A shrunk estimate has little noise: noise / scale² is that
of one brought to scale 1. Each figure has a jackknife standard error, which a larger --cost makes smaller: a row is
measured with that many passes (three rounds at least), the reference with four times as many.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rtdmd.common.checkout import tool
from rtdmd.common.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Prompts, price, and where the table goes."""
    parser.add_argument(
        "--prompts", type=int, default=16, help="prompts, the same in all rounds (default: %(default)s)"
    )
    parser.add_argument("--cost", type=float, default=1e5, help="forward passes per row (default: %(default)g)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these estimators (default: all)")
    parser.add_argument("--out", type=Path, help="CSV file; without it the table is only printed")


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Measure and print a row per estimator. UserError for a price that is not above 0, an unknown name, or a price at
    which noise hides the gradient."""
    estimators = tool("variance.estimators", "variance")
    unknown = [name for name in arguments.only if name not in estimators.ESTIMATORS]
    if arguments.cost <= 0 or unknown:
        raise UserError(
            f"--cost {arguments.cost:g} --only {unknown}; allowed: above 0, and names among"
            f" {', '.join(repr(name) for name in estimators.ESTIMATORS)}"
        )
    from rtdmd.common.files import write_atomic
    from rtdmd.config import load_params
    from rtdmd.evaluate.tables import csv_text
    from rtdmd.study.variance_table import FIGURES, HEADER, Figure

    measure = tool("variance.table", "variance").measure
    rows = []
    bench = estimators.open_bench(load_params(root / "params.yaml"), root, arguments.prompts)
    print(f"{HEADER[0]:50}{'rounds':>8}" + "".join(f"{name:>16}" for name in FIGURES), flush=True)
    for row in measure(bench, arguments.only or list(estimators.ESTIMATORS), arguments.cost):
        rows.append(row)
        pairs = [str(Figure(value, error)) for value, error in zip(row[3::2], row[4::2], strict=True)]
        print(f"{row[0]:50}{row[1]:>8}" + "".join(f"{pair:>16}" for pair in pairs), flush=True)
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(arguments.out, csv_text(HEADER, rows))
