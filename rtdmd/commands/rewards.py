"""`rtdmd rewards`: try the scorers of params.yaml, record what they say, or run one in this process for others.

rtdmd rewards check              every scorer on its drawn pictures, against its record; images per second
rtdmd rewards record             write the records anew, once new scores are known to be right
rtdmd rewards serve hpsv2        answer for the entry that has a `socket`, until stopped with Ctrl-C
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rtdmd.common.errors import UserError

if TYPE_CHECKING:
    from rtdmd.config import Params, RewardParams

USE = {"weight", "policy", "offload", "backprop_resize"}
"""Keys that say what a scorer is used for and where its weights wait, not what it scores."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and for `serve` with which scorer."""
    actions = parser.add_subparsers(dest="action_name", required=True, metavar="action")
    actions.add_parser("check", help="try every scorer of params.yaml against its record")
    record = actions.add_parser("record", help="write the records anew")
    record.add_argument("--file", type=Path, help="one JSON file of many records (default: one each in .rtdmd/golden)")
    serve = actions.add_parser("serve", help="run a scorer that has a `socket` in this process")
    serve.add_argument("name", help="a scorer of params.yaml")


def run(arguments: argparse.Namespace) -> None:
    """Do it for ./params.yaml. UserError where a scorer cannot be loaded or fails its check."""
    from rtdmd.config import load_params

    params = load_params()
    if arguments.action_name == "serve":
        serve(params, arguments.name)
    elif arguments.action_name == "record":
        record(params, arguments.file)
    else:
        check(params)


def entries(params: Params) -> list[RewardParams]:
    """The scorers of all sections, each set of settings once; the weight in the sum does not count."""
    found: list[RewardParams] = []
    named = [*params.train_rtdmd.rewards]
    for judging in params.judging.values():
        named += judging.rewards
    for entry in named:
        alone = entry.model_copy(update={"weight": 1.0})
        if alone not in found:
            found.append(alone)
    return found


def check(params: Params) -> None:
    """Print a row per scorer: images per second, and its scores on the drawn pictures, prompt by prompt."""
    from rtdmd.common.torch_setup import configure
    from rtdmd.rewards.golden import check_rewards, measure
    from rtdmd.rewards.golden_cases import case_of
    from rtdmd.rewards.registry import load_reward

    device = configure(params.run)
    for entry in entries(params):
        reward = load_reward(entry, device)
        written = check_rewards([reward])
        images, prompts, metadata = case_of(reward.name).crossed()
        start = time.perf_counter()
        reward.score(images, prompts, metadata)
        rate = len(images) / (time.perf_counter() - start)
        scores = " ".join(f"{score:.4g}" for score in measure(reward).scores)
        print(f"{reward.name:15}{rate:8.1f} images/s  {'recorded' if written else 'as recorded'}  {scores}", flush=True)


def record(params: Params, file: Path | None) -> None:
    """Write the records of every scorer, and name the files."""
    from rtdmd.common.torch_setup import configure
    from rtdmd.rewards.golden import record_rewards
    from rtdmd.rewards.registry import load_reward

    device = configure(params.run)
    for path in record_rewards([load_reward(entry, device) for entry in entries(params)], file=file):
        print(path)


def served_entry(params: Params, name: str) -> RewardParams:
    """The entry whose scorer answers on a socket; of several that score alike the first, which is the training's.
    UserError where there is none, or two that score differently."""
    found = [entry for entry in entries(params) if entry.name == name and entry.socket is not None]
    different = {entry.model_dump_json(exclude=USE) for entry in found}
    if len(different) != 1:
        raise UserError(
            f"params.yaml has {len(different)} rewards named {name!r} with a socket; to serve one, give it one"
        )
    return found[0]


def serve(params: Params, name: str) -> None:
    """Load the entry's scorer here and answer on its socket until interrupted."""
    from rtdmd.common.signals import Stopped, caught
    from rtdmd.common.torch_setup import configure
    from rtdmd.rewards.registry import load_here
    from rtdmd.rewards.remote import socket_path
    from rtdmd.rewards.server import RewardServer, make_room

    entry = served_entry(params, name)
    path = socket_path(entry, Path("."))
    make_room(path, name)  # before the weights are loaded
    with caught(), RewardServer(load_here(entry, configure(params.run)), path) as server:
        print(f"{name} on {path}; Ctrl-C stops it", flush=True)
        try:
            server.serve_forever()
        except (KeyboardInterrupt, Stopped):
            print("stopped")
