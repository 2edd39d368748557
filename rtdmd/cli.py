"""The command line: small entry points with one name each.

    rtdmd <stage>              one stage of dvc.yaml; reads params.yaml, takes no argument that changes a result
    rtdmd sample "<prompt>"    a picture from any model of this folder
    rtdmd params world         a complete params.yaml

Nothing heavy is imported before the command is known, so that `rtdmd --help` answers at once. An error that the user
can mend is one line and exit code 2; a stage that SIGTERM or SIGUSR1 stopped ends with 75 and goes on when run again.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import select
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from rtdmd import __version__
from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.signals import REQUEUE, Stopped, caught
from rtdmd.pipeline.dvc_yaml import read_pipeline
from rtdmd.pipeline.shared_folder import REMEDY

_ABOUT = """Few-step text-to-image generators: distilled (AC-DMD), then reinforced (RTDMD).

    rtdmd <stage>              one stage of dvc.yaml; reads params.yaml, takes no argument that changes a result
    rtdmd sample "<prompt>"    a picture from any model of this folder
    rtdmd params world         a complete params.yaml

`snakemake --cores all` or `dvc repro` run the stages in their order."""

PRESETS = ("world", "smoke", "sd3m", "sd35m", "flux1-dev", "flux2-klein-4b", "flux2-klein-9b")
READER_ENDED = 141  # 128 + SIGPIPE, as a shell says of other programs
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
RESUMED = {
    "cache_teacher": "goes on where it stopped",
    "train_acdmd": "goes on from its last checkpoint",
    "train_rtdmd": "goes on from its last checkpoint",
    "sweep run": "goes on where it stopped",
    "upload": "goes on where it stopped",
    "world teacher": "goes on from its last checkpoint",
}
"""What a command that was stopped does next time, where it does not start anew."""
MODELS = ("teacher", "teacher_few_step", "train_acdmd", "train_rtdmd")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 something went wrong in a run, 2 something the user can mend,
    75 stopped by SIGTERM or SIGUSR1 (start it again), 130 stopped by Ctrl-C, 141 stopped because the reader of its
    output ended (`rtdmd experiments | head`)."""
    code = READER_ENDED
    try:
        code = _main(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_ended():
            raise
    return code


def _reader_ended() -> bool:
    """Whether nobody reads standard output; then what is left of it goes nowhere when the interpreter flushes it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors and hang-ups are always told
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _main(argv: Sequence[str] | None) -> int:
    """Run one command and say in a line what went wrong."""
    arguments = build_parser().parse_args(argv)
    action: Callable[[argparse.Namespace], int] = arguments.action
    try:
        return action(arguments)
    except UserError as error:
        print(f"rtdmd: {error}", file=sys.stderr)
        return 2
    except RtdmdError as error:
        print(f"rtdmd {arguments.command}: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename is not None else str(error)
        print(f"rtdmd {arguments.command}: {said}; in a folder that several people share, {REMEDY}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno in DISK_FULL:
            said = f"{error}; free some space, then the same command goes on"
        elif error.filename is not None:  # a file without permission, a folder in a file's place, a link in a circle
            said = f"{error.filename}: {error.strerror}"
        else:
            raise
        print(f"rtdmd {arguments.command}: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        then = str(stop) or _after_a_stop(arguments)
        print(f"rtdmd {arguments.command}: stopped; {then}", file=sys.stderr)
        return 130
    except Stopped as stop:
        return _stopped(arguments, stop)


def _after_a_stop(arguments: argparse.Namespace) -> str:
    """What the same command does next time."""
    work = arguments.command
    if work == "experiments" and arguments.run is not None:
        work = arguments.run[1]
    elif work == "sweep":
        work = f"sweep {arguments.what}"
    elif work == "world":
        work = f"world {arguments.part}"
    return f"the same command {RESUMED.get(work, 'starts anew')}"


def _stopped(arguments: argparse.Namespace, stop: Stopped) -> int:
    """Exit code 75, with a line for whoever still listens: the reader of a pipe may have ended by the same signal."""
    try:
        print(f"rtdmd {arguments.command}: {stop}; {_after_a_stop(arguments)}", file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the interpreter flushes it once more
    return REQUEUE


def build_parser() -> argparse.ArgumentParser:
    """The argument parser of every command."""
    parser = argparse.ArgumentParser(
        prog="rtdmd", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"rtdmd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in stage_titles(Path(".")).items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=_stage)
    _add_params(commands)
    _add_sample(commands)
    _add_compare(commands)
    _add_verify(commands)
    _add_rewards(commands)
    _add_plan(commands)
    _add_rehearse(commands)
    _add_methods(commands)
    _add_hub(commands)
    _add_reproduce(commands)
    _add_recover(commands)
    _add_import(commands)
    _add_world(commands)
    return parser


def stage_titles(root: Path) -> dict[str, str]:
    """The stages in the order of `root/dvc.yaml`, each with its description there. Where that cannot be read, those of
    the package: other commands do not need the file, and a stage that is asked for says what is wrong with it."""
    try:
        return {name: stage.description for name, stage in read_pipeline(root, alike=False).items()}
    except UserError:
        names = sorted(path.stem for path in Path(__file__).with_name("stages").glob("[a-z]*.py"))
        return dict.fromkeys(names, "a stage of dvc.yaml, which cannot be read here")


def _stage(arguments: argparse.Namespace) -> int:
    with caught():
        _stage_module(arguments.command).run(Path("."))
    return 0


def _stage_module(name: str) -> ModuleType:
    """The module of a stage. All that its import makes stays, and to look for garbage among it would be a seventh of
    the import's time."""
    gc.disable()
    try:
        return import_module(f"rtdmd.stages.{name}")
    finally:
        gc.enable()


def _add_world(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from rtdmd.commands.world import add_arguments

    world = commands.add_parser("world", help="pre-train a part of the embedded world (`make world` runs them all)")
    add_arguments(world)
    world.set_defaults(action=_command)


def _add_params(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    params = commands.add_parser("params", help="print a complete params.yaml, or check the one here")
    params.add_argument(
        "preset",
        nargs="?",
        choices=(*PRESETS, "check"),
        help="what to print; check: test ./params.yaml and the models that it names",
    )
    apart = params.add_mutually_exclusive_group()
    apart.add_argument("--experiment", metavar="RUN", help="a published run instead (`rtdmd experiments` lists them)")
    apart.add_argument("--recipe", choices=("published", "corrected"), help="with the training sections of a recipe")
    apart.add_argument("--method", help="with one method's settings (`rtdmd methods` lists them)")
    params.set_defaults(action=_params)
    schema = commands.add_parser("schema", help="print the JSON schema of params.yaml")
    schema.set_defaults(action=_schema)


def _params(arguments: argparse.Namespace) -> int:
    from rtdmd.config import NOTES, load_params, preset
    from rtdmd.config.presets import RECIPES, long_enough
    from rtdmd.config.render import params_text
    from rtdmd.pipeline.to_fill_in import commits_to_fill_in, fill_in_lines

    if (arguments.preset is None) == (arguments.experiment is None):
        raise UserError(f"params: name one of {', '.join(PRESETS)}, check, or --experiment RUN (`rtdmd experiments`)")
    if arguments.experiment is not None:
        from rtdmd.experiments.settings import run_text

        sys.stdout.write(run_text(arguments.experiment))
        return 0
    if arguments.preset == "check":
        from rtdmd.plan.check import check_run

        check_run(load_params(), declared=Path("dvc.yaml").is_file())  # a file on its own can be looked at too
        return 0
    origin = f"rtdmd params {arguments.preset}"
    changes = None
    if arguments.recipe is not None:
        changes = long_enough(arguments.preset, RECIPES[arguments.recipe])
        origin = f"{origin} --recipe {arguments.recipe}"
    elif arguments.method is not None:
        from rtdmd.methods import find_method

        changes = long_enough(arguments.preset, find_method(arguments.method).changes())
        origin = f"{origin} --method {arguments.method}"
    tree = preset(arguments.preset, changes)
    commits = fill_in_lines("Commits to fill in, a scorer's in every list that has it:", commits_to_fill_in(tree))
    sys.stdout.write(params_text(tree, origin, [*NOTES.get(arguments.preset, ()), *commits]))
    return 0


def _schema(_: argparse.Namespace) -> int:
    from rtdmd.config.render import schema_text

    sys.stdout.write(schema_text())
    return 0


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sample = commands.add_parser("sample", help="write a PNG grid of images for a prompt")
    sample.add_argument("prompt")
    sample.add_argument(
        "--from",
        dest="source",
        default="train_rtdmd",
        metavar="MODEL",
        help=f"{', '.join(MODELS)}, or a published folder (default: %(default)s)",
    )
    sample.add_argument("--images", type=int, default=8, help="images in the grid (default: %(default)s)")
    sample.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    sample.add_argument("--resolution", type=int, help="side of the images in pixels (default: as trained)")
    sample.add_argument("--out", type=Path, default=Path("sample.png"), help="PNG file (default: %(default)s)")
    sample.add_argument("--base", help="the base of a published folder, if it is not where the record says")
    sample.set_defaults(action=_command)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    compare = commands.add_parser("compare", help="paired difference of two models' scores, with 95 %% intervals")
    compare.add_argument("first", help="a model of results/evaluate/scores.csv, or FILE.csv:model")
    compare.add_argument("second", help="the model to compare it with")
    compare.set_defaults(action=_command)


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from rtdmd.commands.verify import add_arguments

    verify = commands.add_parser("verify", help="check the equations against an oracle in closed form")
    add_arguments(verify)
    verify.set_defaults(action=_command)


def _add_rewards(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from rtdmd.commands.rewards import add_arguments

    rewards = commands.add_parser("rewards", help="try the scorers of params.yaml, record or serve them")
    add_arguments(rewards)
    rewards.set_defaults(action=_command)


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from rtdmd.commands import bench, plan

    plan.add_arguments(
        commands.add_parser("plan", help="parameters, memory, FLOPs and hours of a run before it starts")
    )
    bench.add_arguments(commands.add_parser("bench", help="time of a training update, relative to its model passes"))
    for name in ("plan", "bench"):
        commands.choices[name].set_defaults(action=_command)


def _add_rehearse(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from rtdmd.commands import rehearse

    rehearse.add_arguments(commands.add_parser("rehearse", help="the whole run with stand-ins for what it downloads"))
    commands.choices["rehearse"].set_defaults(action=_command)


def _add_methods(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from rtdmd.commands import experiments, methods, sweep, variance

    experiments.add_arguments(commands.add_parser("experiments", help="the published tables, and figures beside ours"))
    methods.add_arguments(commands.add_parser("methods", help="the methods that can be compared, or one's card"))
    sweep.add_arguments(commands.add_parser("sweep", help="one run of the comparison, or its table and page"))
    variance.add_arguments(commands.add_parser("variance", help="noise and bias of the reward-gradient estimators"))
    for name in ("experiments", "methods", "sweep", "variance"):
        commands.choices[name].set_defaults(action=_command)


def _add_hub(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from rtdmd.commands import trace, upload

    trace.add_arguments(commands.add_parser("trace", help="where a result comes from, and what differs here"))
    upload.add_arguments(commands.add_parser("upload", help="send results/publish to the Hub (no --yes: only show it)"))
    for name in ("trace", "upload"):
        commands.choices[name].set_defaults(action=_command)


def _add_recover(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    recover = commands.add_parser("recover", help="remove what a kill or a bad disk left damaged in DVC's records")
    recover.set_defaults(action=_command)


def _add_reproduce(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from rtdmd.commands import reproduce

    reproduce.add_arguments(
        commands.add_parser("reproduce", help="run the commit again from scratch and compare hashes")
    )
    commands.choices["reproduce"].set_defaults(action=_command)


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    found = commands.add_parser("import", help="turn checkpoints of the public code into a folder that diffusers loads")
    found.add_argument("files", nargs="*", type=Path, metavar="FILE", help="checkpoints in the order of their training")
    found.add_argument("--base", help="diffusers folder of the base model, or model.teacher itself")
    found.add_argument("--out", type=Path, metavar="DIR", help="new folder")
    found.add_argument(
        "--experiment", metavar="RUN", help="instead of files: the published checkpoint that this run evaluates"
    )
    found.add_argument("--alpha", type=float, help="LoRA alpha, for files that do not record it")
    found.set_defaults(action=_import)


def _import(arguments: argparse.Namespace) -> int:
    import_module("rtdmd.commands.import_checkpoint").run(arguments)  # `import` is no name for a module
    return 0


def _command(arguments: argparse.Namespace) -> int:
    """`rtdmd/commands/<command>.py` has `run(arguments)`."""
    import_module(f"rtdmd.commands.{arguments.command}").run(arguments)
    return 0
