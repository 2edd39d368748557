"""What it costs to share a training update among processes, on this machine's CPU: time, communication, bytes sent.

`rtdmd bench --processes 1 2 4` prints the table. An update is a round of stage one (a generator's update with the fake
score's before it) or an epoch of stage two, run by the trainers themselves over gloo, a thread in each process, with
the base whole, sharded over all processes, and sharded in two groups.

The ideal number of bytes that each of n processes sends is that of rings: 2 (n - 1) / n times the gradients' for an
all-reduce, (s - 1) / s times the block's for an all-gather among the s processes that share a base. What was sent is
all that a process wrote, by Linux's count (/proc/self/io): figures and messages are in it.

With more processes than cores the times tell what sharing costs, and not how an update would scale on GPUs.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from rtdmd.backbones import load_backbone
from rtdmd.config import Params
from rtdmd.config.load import validate
from rtdmd.config.presets import merged
from rtdmd.plan.models import part_configs, text_shapes
from rtdmd.prompts.records import read_set
from rtdmd.rehearse.updates import Update, stage_one, stage_two
from rtdmd.rewards.reward_models import load_rewards
from rtdmd.train.distributed import ranks, sharding
from rtdmd.train.distributed.launch import Place
from rtdmd.train.distributed.ranks import Ranks, join
from rtdmd.train.distributed.sharding import Gather
from tools.bench import require_prompts

STAGES = ("train_acdmd", "train_rtdmd")
HEAD = ["", "processes", "sharding", "update [s]", "CPU [s]", "in collectives", "sent [MB]", "ideal [MB]", "over ideal"]


@dataclass(frozen=True)
class Measured:
    """An update in one process, by the median over updates: seconds by the clock, of its processor time, and in
    collectives (waiting for the others included); bytes that it sent, and that it would have sent in perfect rings."""

    clock: float
    cpu: float
    collectives: float
    sent: float
    ideal: float


@dataclass
class Meter:
    """Seconds in collectives and the ideal bytes of an update so far."""

    seconds: float = 0.0
    ideal: float = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """All collectives of this process inside the ``with``."""
        plain_run = ranks.run_collective
        plain_sum = Ranks.all_reduce_tensors
        plain_gather = Gather.__call__

        def run(action: Callable[[], Any]) -> Any:
            began = time.perf_counter()
            found = plain_run(action)
            self.seconds += time.perf_counter() - began
            return found

        def sum_tensors(own: Ranks, tensors: Sequence[Tensor]) -> None:
            self.ideal += 2 * (own.world - 1) / own.world * sum(4 * tensor.numel() for tensor in tensors)
            plain_sum(own, tensors)

        def gather(own: Gather, output_tensor: Tensor, input_tensor: Tensor, **options: Any) -> Any:
            self.ideal += output_tensor.nbytes - input_tensor.nbytes
            return plain_gather(own, output_tensor, input_tensor, **options)

        with ExitStack() as stack:
            for module in (ranks, sharding):
                stack.enter_context(patch.object(module, "run_collective", run))
            stack.enter_context(patch.object(Ranks, "all_reduce_tensors", sum_tensors))
            stack.enter_context(patch.object(Gather, "__call__", gather))
            yield


def written_bytes() -> int:
    """What this process has written so far, to sockets too."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text(encoding="utf-8").splitlines())
    return int(counters["wchar"])


def measure(params: Params, stage: str, place: Place, repeats: int) -> Measured:
    """Updates of ``stage`` in one of several processes, after one that does not count."""
    os.environ |= place.environment()
    found = []
    with join(stage, place.world, params.run) as here:
        update = make_update(params, stage, here)
        for number in range(repeats + 1):
            meter = Meter()
            here.all_gather_object(None)  # all begin together
            before = (time.perf_counter(), time.process_time(), written_bytes())
            with meter.watching():
                update(number)
            after = (time.perf_counter(), time.process_time(), written_bytes())
            clock, cpu, sent = (late - early for late, early in zip(after, before, strict=True))
            found.append(Measured(clock, cpu, meter.seconds, sent, meter.ideal))
    counted = found[1:]
    return Measured(
        clock=statistics.median(one.clock for one in counted),
        cpu=statistics.median(one.cpu for one in counted),
        collectives=statistics.median(one.collectives for one in counted),
        sent=statistics.median(one.sent for one in counted),
        ideal=statistics.median(one.ideal for one in counted),
    )


def make_update(params: Params, stage: str, here: Ranks) -> Update:
    """The stage's update, with the base sharded as ``params`` say."""
    shapes = text_shapes(params.model, part_configs(params.model, Path()))
    backbone = load_backbone(params.model, vae=stage == "train_rtdmd", device=here.device, root=Path())
    section = getattr(params, stage)
    trainer: Any
    if stage == "train_acdmd":
        trainer, update = stage_one(params, backbone, shapes, here)
    else:
        records = [prompt.row() for prompt in read_set(require_prompts(Path()), section.prompts)]
        reward_models = load_rewards(section.rewards, here.device, Path())
        trainer, update = stage_two(params, backbone, reward_models, shapes, records, here)
    if section.sharding != "none":
        trainer.adapters.shard(here, section.base_shards(here.world))
    return update


def spreads(processes: int) -> Iterator[dict[str, Any]]:
    """The ways in which so many processes can hold the base, in keys of params.yaml."""
    yield {"processes": processes, "sharding": "none", "shard_group": None}
    if processes > 1:
        yield {"processes": processes, "sharding": "base", "shard_group": None}
    if processes > 3 and processes % 2 == 0:
        yield {"processes": processes, "sharding": "hybrid", "shard_group": processes // 2}


def scaling(params: Params, counts: Sequence[int], repeats: int) -> Iterator[list[str]]:
    """A row for each stage, number of processes and sharding. UserError where the prompts are not there, or a batch
    cannot be shared by so many."""
    require_prompts(Path())
    for stage in STAGES:
        for keys in (keys for processes in counts for keys in spreads(processes)):
            tree = merged(params.model_dump(mode="json"), {"run": {"threads": 1, "device": "cpu"}, stage: keys})
            yield row(stage, keys, in_processes(validate(tree, f"--processes {keys['processes']}"), stage, repeats))


def in_processes(params: Params, stage: str, repeats: int) -> list[Measured]:
    """Updates of ``stage`` in as many processes as its section says, forked."""
    world = getattr(params, stage).processes
    with socket.create_server(("127.0.0.1", 0)) as listener:  # any port that is free
        port = listener.getsockname()[1]
    places = [Place(rank, world, rank, world, "127.0.0.1", port) for rank in range(world)]
    with multiprocessing.get_context("fork").Pool(world) as pool:
        return pool.starmap(measure, [(params, stage, place, repeats) for place in places], chunksize=1)


def row(stage: str, keys: Mapping[str, Any], found: Sequence[Measured]) -> list[str]:
    """Of one spread: the slowest process's clock, all processors' seconds, means over processes of the rest."""
    clock = max(one.clock for one in found)
    cpu = sum(one.cpu for one in found)
    share = statistics.mean(one.collectives / one.clock for one in found)
    sent = statistics.mean(one.sent for one in found)
    ideal = statistics.mean(one.ideal for one in found)
    name = f"hybrid, groups of {keys['shard_group']}" if keys["shard_group"] else keys["sharding"]
    figures = [f"{clock:.2f}", f"{cpu:.2f}", f"{100 * share:.0f} %", f"{sent / 1e6:.1f}", f"{ideal / 1e6:.1f}"]
    return [stage, str(len(found)), name, *figures, f"{sent / ideal:.3f}" if ideal else ""]
