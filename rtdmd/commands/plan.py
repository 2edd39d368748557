"""`rtdmd plan`: what a run needs before it starts.

    rtdmd plan                                  ./params.yaml on an H200
    rtdmd plan --params other.yaml --gpu A100   another file, another GPU
    rtdmd plan --preset sd35m --processes 8     a preset, as if trained by eight processes
    rtdmd plan --set adapter.rank=64            with another setting, as often as needed

No weights are read; that those of local models are there is looked at. `rtdmd rehearse --real-size` measures the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.common.errors import UserError

if TYPE_CHECKING:
    from rtdmd.config import Params


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which params, and for what machine."""
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="file (default: %(default)s)")
    parser.add_argument("--preset", metavar="NAME", help="plan a preset instead of a file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="change a setting"
    )
    parser.add_argument(
        "--gpu", default="H200", metavar="GPU", help="B200, H200, H100, A100, ... (default: %(default)s)"
    )
    parser.add_argument("--processes", type=int, help="processes of the trainings (default: those of the params)")


def run(arguments: argparse.Namespace) -> None:
    """Print the plan. UserError for an unknown GPU, preset or setting, or a teacher whose shapes are not known."""
    from rtdmd.config import load_params, preset
    from rtdmd.plan.gpus import GPUS

    if arguments.gpu not in GPUS:
        raise UserError(f"--gpu: {arguments.gpu!r} is not known; allowed: {', '.join(GPUS)}")
    if arguments.processes is not None and arguments.processes < 1:
        raise UserError(f"--processes: {arguments.processes}; allowed: 1 or more")
    params = preset(arguments.preset) if arguments.preset else load_params(arguments.params)
    params = with_settings(params, arguments.settings)
    if not arguments.preset:
        from rtdmd.pipeline.model_inputs import check_local

        check_local(Path("."), params, groups=())
    from rtdmd.plan.estimate import make_plan
    from rtdmd.plan.text import plan_text

    print(plan_text(make_plan(params, processes=arguments.processes), params, arguments.gpu))


def with_settings(params: Params, settings: Sequence[str]) -> Params:
    """The params with these, each a KEY=VALUE. UserError where one has no such form or is not allowed."""
    from rtdmd.config.load import validate
    from rtdmd.config.presets import merged

    for setting in settings:
        params = validate(merged(params.model_dump(mode="json"), changes_of(setting)), f"--set {setting}")
    return params


def changes_of(setting: str) -> dict[str, Any]:
    """``a.b=value`` as nested dictionaries, the value as YAML reads it. UserError where it has no such form."""
    from rtdmd.common.yaml_text import parse_yaml

    name = f"--set {' '.join(setting.split())}"
    key, equals, text = setting.partition("=")
    if not equals:
        raise UserError(f"{name}: allowed: KEY=VALUE, as in adapter.rank=64")
    value = parse_yaml(text, name)
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)
