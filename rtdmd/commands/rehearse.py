"""`rtdmd rehearse`: the whole run with stand-ins for what it would download, before a weight is downloaded.

    rtdmd rehearse                              ./params.yaml
    rtdmd rehearse --preset sd35m               a preset, its placeholders filled in
    rtdmd rehearse --experiment RUN             a published run (`rtdmd experiments` lists them)
    rtdmd rehearse --real-size --updates 2      training alone, with random weights of the published size: memory, time

Every model and prompt set of the params gets a stand-in, of the real classes at a tiny size in the published files, on
a Hub of this machine. `snakemake` then runs every stage in a folder of its own, with sizes reduced and nothing else
changed, and a table says what that proved and what it could not. Needs no network; touches no result, cache or dvc.lock
of this folder. What the real run would refuse is refused here, with its words.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rtdmd.common.errors import UserError

if TYPE_CHECKING:
    from rtdmd.config import Params

STAGES = ("train_acdmd", "train_rtdmd")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to rehearse, and where."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--params", type=Path, default=Path("params.yaml"), help="file (default: %(default)s)")
    what.add_argument("--preset", metavar="NAME", help="a preset instead of a file")
    what.add_argument("--experiment", metavar="RUN", help="a published run instead")
    parser.add_argument(
        "--fill-in", action="store_true", help="let the placeholders of commits in --params be any commit"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="new folder to keep the run in (default: a temporary)")
    real = parser.add_argument_group("training at the published size")
    real.add_argument("--real-size", action="store_true", help="measure updates of training with random weights")
    real.add_argument("--stage", choices=STAGES, help="one stage alone (default: both)")
    real.add_argument("--updates", type=int, default=2, help="updates of each stage (default: %(default)s)")


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Rehearse and print the table. UserError for what the real run would refuse."""
    params = chosen_params(arguments, root)
    if arguments.real_size:
        _real_size(arguments, params)
        return
    from rtdmd.experiments.jobs import pipeline_of
    from rtdmd.rehearse.run import Plan, rehearse

    ours = arguments.preset is not None or arguments.experiment is not None
    plan = Plan(params, pipeline_of(root, params) if ours else None, fill_in=arguments.fill_in or ours)
    print(rehearse(root, plan, arguments.keep))


def chosen_params(arguments: argparse.Namespace, root: Path) -> Params:
    """The params of the file, preset or published run that is named."""
    from rtdmd.config import load_params, preset

    if arguments.experiment is not None:
        from rtdmd.experiments import find_run
        from rtdmd.experiments.settings import load_local, run_params

        return run_params(find_run(arguments.experiment), load_local(root))
    return preset(arguments.preset) if arguments.preset is not None else load_params(root / arguments.params)


def _real_size(arguments: argparse.Namespace, params: Params) -> None:
    """Seconds an update and peak memory of training at the published size, beside the plan's."""
    raise UserError("rehearse: --real-size is not there yet")
