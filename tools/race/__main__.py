"""`python -m tools.race`: samples a second and peak memory of our updates and of the public code's, in turn.

    python -m tools.race                          the world's model
    python -m tools.race --width 640 --blocks 5   a random one of 74 million parameters

One process, one thread, the same random weights, batches and published settings; `tools/race/public.py` says what is
restated. Each turn of stage one is made once for each step at which its rollout can stop; "both turns" is the
iteration with a generator's turn, which on our side has one rollout (`generator_rollout: shared`). Seconds are the
processor's, medians over the rounds, of which the first does not count; a ratio is the median of the rounds' own.
Memory: the storages of all tensors at the peak of an update, weights, optimizers and rewards included, each side alone
in the process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import fields

from rtdmd.common.columns import table
from rtdmd.common.rng import integers
from rtdmd.common.torch_setup import configure
from rtdmd.config import Params
from rtdmd.plan.cost_counter import count_cost
from rtdmd.rehearse.memory import every_tensor, held
from rtdmd.rehearse.real_models import Configs
from tools.race.models import CPU, Run, Sizes, configs_of, ours, settings, theirs

UPDATES = {"train_acdmd": ("fake turn", "generator turn", "both turns"), "train_rtdmd": ("epoch",)}
SIDES: dict[str, Callable[[Params, Configs, str], Run]] = {"ours": ours, "public": theirs}


def main() -> None:
    """Print a row for each turn, a table a stage."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.race", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for one in fields(Sizes):
        parser.add_argument(f"--{one.name}", type=int, default=one.default, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    asked = vars(parser.parse_args())
    rounds = asked.pop("rounds")
    sizes = Sizes(**asked)
    params = settings(sizes)
    configs = configs_of(params, sizes)
    configure(params.run)
    for stage, turns in UPDATES.items():
        rows = [["", "images", "ours [CPU s]", "public [CPU s]", "ratio", "ours, peak [MiB]", "public, peak"]]
        peaks = {name: peaks_of(make(params, configs, stage), params, stage) for name, make in SIDES.items()}
        found = seconds_of({name: make(params, configs, stage) for name, make in SIDES.items()}, params, stage, rounds)
        for turn in turns:
            own = found[turn]["ours"]
            public = found[turn]["public"]
            ratio = statistics.median(b / a for a, b in zip(own, public, strict=True))
            seconds = [f"{statistics.median(one):.2f}" for one in (own, public)]
            images = sizes.prompts * sizes.group if turn == "epoch" else sizes.batch * len(numbers(params, turn, 0))
            memory = [f"{peaks[name][turn] / 2**20:.0f}" for name in SIDES]
            rows.append([f"{stage}: {turn}", str(images), *seconds, f"{ratio:.2f}", *memory])
        print(table(rows), flush=True)


def numbers(params: Params, turn: str, round_: int) -> list[int]:
    """The updates of a round: one epoch; an iteration for each step at which a rollout can stop."""
    if turn == "epoch":
        return [round_]
    steps = params.model.num_steps
    first = {integers(0, steps, 0, "train_acdmd", number, "stop"): number for number in range(50 * steps)}
    return [first[stop] for stop in range(steps)]


def seconds_of(sides: dict[str, Run], params: Params, stage: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """{turn: {side: seconds of each round}}, the sides in turn, and each first in every other round."""
    found: dict[str, dict[str, list[float]]] = {}
    for turn in UPDATES[stage]:
        found[turn] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for turn in UPDATES[stage]:
            for name in list(sides) if round_ % 2 else reversed(sides):
                began = time.process_time()
                for number in numbers(params, turn, round_):
                    sides[name](turn, number)
                if round_:
                    found[turn][name].append(time.process_time() - began)
    return found


def peaks_of(run: Run, params: Params, stage: str) -> dict[str, int]:
    """{turn: bytes}, after an update of each in which the optimizers' moments are made."""
    for turn in UPDATES[stage]:
        run(turn, numbers(params, turn, 0)[-1])
    found = dict[str, int]()
    for turn in UPDATES[stage]:
        before = held(CPU)
        with count_cost(every_tensor()) as counter:
            run(turn, numbers(params, turn, 1)[-1])
        found[turn] = before + int(counter.peak)
    return found


if __name__ == "__main__":
    main()
