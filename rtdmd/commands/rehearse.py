"""`rtdmd rehearse`: the whole run with stand-ins for what it would download, before a weight is downloaded.

    rtdmd rehearse                              ./params.yaml
    rtdmd rehearse --preset sd35m               a preset, its placeholders filled in
    rtdmd rehearse --experiment RUN             a published run (`rtdmd experiments` lists them)
    rtdmd rehearse --real-size --updates 2      training alone, with random weights of the published size: memory, time
    rtdmd rehearse --real-size --preset sd35m --also flux2-klein-4b --minutes 8     what a GPU does, in one call

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
from rtdmd.rehearse import MEASUREMENTS, STAGES

if TYPE_CHECKING:
    from rtdmd.config import Params

MIN_ONE = ("updates", "images", "blocks")
OF_REAL_SIZE = ("also", "stage", "updates", "minutes", "device", "images", "blocks", "measure", "settings", "out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to rehearse, and where."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--params", type=Path, default=Path("params.yaml"), help="file (default: %(default)s)")
    what.add_argument("--preset", metavar="NAME", help="a preset instead of a file")
    what.add_argument("--experiment", metavar="RUN", help="a published run instead")
    parser.add_argument("--fill-in", action="store_true", help="accept the placeholders of commits in --params")
    parser.add_argument(
        "--processes",
        type=int,
        choices=(1, 2),
        help="processes of each training stage (default: those of the params, two at most)",
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="new folder to keep the run in (default: a temporary one)"
    )
    real = parser.add_argument_group("training at the published size (docs/verification.md)")
    real.add_argument("--real-size", action="store_true", help="measure updates of training with random weights")
    real.add_argument("--also", nargs="+", default=[], metavar="PRESET", help="presets that are measured too")
    real.add_argument("--stage", choices=STAGES, help="one stage alone (default: both)")
    real.add_argument("--updates", type=int, default=2, help="updates of each stage (default: %(default)s)")
    real.add_argument("--minutes", type=float, help="start nothing new after this many minutes (default: no limit)")
    real.add_argument("--device", choices=("cuda", "cpu"), help="where to compute (default: run.device of the params)")
    real.add_argument("--images", type=int, help="images of an update (default: a micro-batch)")
    real.add_argument("--blocks", type=int, help="blocks of the transformer, at its full width (default: all)")
    real.add_argument(
        "--measure", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="what to measure (default: all)"
    )
    real.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="change a setting"
    )
    real.add_argument("--out", type=Path, default=Path(".rtdmd/rehearse"), help="folder of figures (%(default)s)")


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Rehearse and print the table. UserError for what the real run would refuse."""
    _refuse_unread(arguments)
    params = chosen_params(arguments, root)
    if arguments.real_size:
        _real_size(arguments, params, root)
        return
    from rtdmd.experiments.jobs import pipeline_of
    from rtdmd.rehearse.reduced import with_processes
    from rtdmd.rehearse.run import Plan, rehearse

    ours = arguments.preset is not None or arguments.experiment is not None
    if arguments.processes is not None:
        params = with_processes(params, arguments.processes)
    plan = Plan(params, pipeline_of(root, params) if ours else None, fill_in=arguments.fill_in or ours)
    print(rehearse(root, plan, arguments.keep))


def _refuse_unread(arguments: argparse.Namespace) -> None:
    """UserError for an option that the chosen kind of rehearsal does not read."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    unread = ("fill_in", "keep", "processes") if arguments.real_size else OF_REAL_SIZE
    for name in unread:
        if getattr(arguments, name) != parser.get_default(name):
            option = "set" if name == "settings" else name.replace("_", "-")
            change = "leave it out" if arguments.real_size else "leave it out, or add --real-size"
            raise UserError(f"--{option}: not read by this kind of rehearsal; {change}")


def chosen_params(arguments: argparse.Namespace, root: Path) -> Params:
    """The params of the file, preset or published run that is named."""
    from rtdmd.config import load_params, preset

    if arguments.experiment is not None:
        from rtdmd.experiments import find_run
        from rtdmd.experiments.settings import load_local, run_params

        return run_params(find_run(arguments.experiment), load_local(root))
    return preset(arguments.preset) if arguments.preset is not None else load_params(root / arguments.params)


def _real_size(arguments: argparse.Namespace, params: Params, root: Path) -> None:
    """Seconds per update and peak memory of training at the published size, beside the plan's."""
    from rtdmd.commands.plan import with_settings
    from rtdmd.config import preset
    from rtdmd.rehearse.real_case import Case
    from rtdmd.rehearse.real_size import Options, rehearse

    for name in MIN_ONE:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}: {value}; allowed: 1 or more")
    if arguments.minutes is not None and arguments.minutes <= 0:
        raise UserError(f"--minutes: {arguments.minutes:g}; allowed: more than 0")
    chosen = {arguments.preset or arguments.experiment or str(arguments.params): params}
    chosen |= {name: preset(name) for name in arguments.also}
    sized = {name: with_settings(own, arguments.settings) for name, own in chosen.items()}
    cases = {name: Case.of(own, root, arguments.images, arguments.blocks) for name, own in sized.items()}
    rehearse(
        cases,
        Options(
            device=arguments.device or params.run.device,
            stages=STAGES if arguments.stage is None else (arguments.stage,),
            updates=arguments.updates,
            minutes=arguments.minutes,
            measure=tuple(arguments.measure),
            out=arguments.out,
        ),
    )
