"""`rtdmd verify`: is every formula that the training uses right? Each is measured against a closed form.

    rtdmd verify                                      float64 on the CPU: the proof
    rtdmd verify --only T1 T4                         some statements
    rtdmd verify --device cuda --dtype bfloat16       what precision costs: the network rounds, levels stay float32
    rtdmd verify --study docs/proved                  its choices side by side, minutes: study.csv, clouds.png

Prints one row per statement and raises an error (exit code 1) when any fails. The statements are in
rtdmd/oracle/statements.py.
"""

from __future__ import annotations

import argparse
import unicodedata
from pathlib import Path

from rtdmd.common.checkout import tool
from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.parsing import first_line

NAMES = ("T1", "T2", "T3", "T4", "T5", "T6", "T7", "T8")
HEADER = f"{'':4}{'statement':58}{'equation':56}{'measured':>9}{'bound':>9}  {'':5}{'seconds':>7}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where, how precisely, and which statements."""
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--dtype", default="float64", choices=("float64", "float32", "bfloat16"), help="precision")
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw (default: 0)")
    parser.add_argument("--study", type=Path, metavar="FOLDER", help="compare the method's choices instead")
    parser.add_argument("--only", nargs="+", default=[], choices=NAMES, metavar="T", help=f"among {' '.join(NAMES)}")


def run(arguments: argparse.Namespace) -> None:
    """Measure, print the table, and raise RtdmdError when a statement fails."""
    if arguments.study is not None:
        _study(arguments)
        return
    import torch

    from rtdmd.oracle.setting import Setting
    from rtdmd.oracle.statements import check_all

    try:
        torch.zeros(1, device=arguments.device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device it was not built for
        raise UserError(f"--device {arguments.device}: {first_line(error)}") from error
    setting = Setting(arguments.device, arguments.dtype, arguments.seed)
    print(HEADER)
    failed = []
    count = 0
    seconds = 0.0
    for result in check_all(setting, tuple(arguments.only)):
        row = result.statement
        verdict = "pass" if result.passed else "FAIL"
        figures = f"{result.measured:>9.2g}{result.limit:>9}  {verdict:5}{result.seconds:>7.2f}"
        print(f"{row.name:4}{_pad(row.claim, 58)}{_pad(row.equation, 56)}{figures}", flush=True)
        count = count + 1
        seconds = seconds + result.seconds
        failed += [] if result.passed else [f"{row.name} ({row.claim})"]
    print(f"{count - len(failed)} of {count} statements hold ({setting.dtype}, {setting.device}), {seconds:.1f} s")
    if failed:
        raise RtdmdError(f"{len(failed)} of {count} statements fail: {'; '.join(failed)}")


def _study(arguments: argparse.Namespace) -> None:
    """Every variant of tools/oracle_study.py; UserError with an option that it does not have."""
    if (arguments.device, arguments.dtype, arguments.seed, arguments.only) != ("cpu", "float64", 0, []):
        raise UserError("--study takes no other options; its device, precision and seeds are part of what it measures")
    for line in tool("oracle_study", "verify --study").run(arguments.study):
        print(line, flush=True)


def _pad(text: str, width: int) -> str:
    """Left-justified by what the eye sees: combining marks (the hat of x̂) take no column."""
    return text + " " * (width - sum(1 for letter in text if not unicodedata.combining(letter)))
