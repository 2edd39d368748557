"""`rtdmd variance`: how noisy and how wrong every estimator of the reward's gradient is, at one price.

    rtdmd variance --out results/comparison/variance.csv     on the stage-one student of this folder

Each row is an estimator of ∇E r(x̂_0), r the first differentiable reward of train_rtdmd.rewards: noise (tr Cov over
|mean|²) of one estimate that costs --cost forward passes of the generator; scale, bias and cosine of its mean against
back-propagation through the whole chain (1, 0 and 1 where it is unbiased), each with a jackknife standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.errors import UserError

if TYPE_CHECKING:
    from rtdmd.study.estimators import Bench

HEADER = ("estimator", "prompts", "passes", "noise", "noise_se", "scale", "scale_se", "bias", "bias_se", "cosine",
          "cosine_se")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Price, repeats, and where the table goes."""
    parser.add_argument("--cost", type=float, default=1000.0, help="forward passes an estimate (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=16, help="estimates of each kind (default: %(default)s)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these estimators (default: all)")
    parser.add_argument("--out", type=Path, help="CSV file; without it the table is only printed")


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Measure and print a row an estimator. UserError for a repeat count without a variance or an unknown name."""
    from rtdmd.study.estimators import ESTIMATORS

    unknown = [name for name in arguments.only if name not in ESTIMATORS]
    if arguments.repeats < 3 or arguments.cost <= 0 or unknown:
        raise UserError(
            f"--repeats {arguments.repeats} --cost {arguments.cost:g} --only {unknown}; allowed: 3 or more, above 0,"
            f" and names among {', '.join(repr(name) for name in ESTIMATORS)}"
        )
    from rtdmd.config import load_params
    from rtdmd.evaluate.tables import csv_text
    from rtdmd.files import write_atomic
    from rtdmd.study.estimators import open_bench

    rows = []
    print(f"{HEADER[0]:50}{'prompts':>8}{'noise':>18}{'scale':>16}{'bias':>16}{'cosine':>16}")
    for row in measure(open_bench(load_params(root / "params.yaml"), root), arguments):
        rows.append(row)
        pairs = [f"{value:.3g} ± {error:.2g}" for value, error in zip(row[3::2], row[4::2], strict=True)]
        print(f"{row[0]:50}{row[1]:>8}{pairs[0]:>18}" + "".join(f"{pair:>16}" for pair in pairs[1:]), flush=True)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out, csv_text(HEADER, rows))


def measure(bench: Bench, arguments: argparse.Namespace) -> Iterator[list[Any]]:
    """Rows of the table; the reference's own row is of an independent set of its repeats."""
    import torch

    from rtdmd.study.estimators import ESTIMATORS, REFERENCE, prompts_within, repeats
    from rtdmd.study.moments import moments

    def collected(name: str, stream: str) -> torch.Tensor:
        return torch.stack(list(repeats(bench, name, arguments.cost, arguments.repeats, stream)))

    reference = collected(REFERENCE, "reference")
    for name in arguments.only or ESTIMATORS:
        found = moments(collected(name, "study"), reference)
        figures = (found.noise, found.scale, found.bias, found.cosine)
        numbers = [part for figure in figures if figure is not None for part in (figure.value, figure.error)]
        yield [name, *prompts_within(bench, name, arguments.cost), *numbers]
