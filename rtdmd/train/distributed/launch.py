"""How a run becomes several processes: started by a launcher (accelerate, torchrun, srun), or by its own first process.

Every process runs the same command. Its place among them comes from the environment; where no launcher has set one and
params.yaml asks for several processes, this process becomes rank 0 and starts the others on the same machine.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rtdmd
from rtdmd.common.errors import UserError

SHARDING = {
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",  # adapter.gradient_checkpointing does that
}
"""What `sharding: base` and `hybrid` are in the variables of `accelerate launch --use_fsdp`."""
LINGER = 30.0  # seconds that a started process may take to end after this one


@dataclass(frozen=True)
class Place:
    """A process among those of a run, and where rank 0 answers."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    host: str
    port: int

    def environment(self) -> dict[str, str]:
        """As torch and accelerate read it (``env://``)."""
        numbers = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_world,
            "MASTER_PORT": self.port,
        }
        return {name: str(value) for name, value in numbers.items()} | {"MASTER_ADDR": self.host}


def found_place(env: Mapping[str, str]) -> Place | None:
    """The place that a launcher gave this process: torch's variables, else those of a Slurm step of several tasks; None
    where there is none. UserError where a variable is missing."""
    if "WORLD_SIZE" in env:
        return _torch_place(env)
    if int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _slurm_place(env)
    return None


def _torch_place(env: Mapping[str, str]) -> Place:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]
    world = int(env["WORLD_SIZE"])
    if missing and world > 1:
        raise UserError(f"WORLD_SIZE is {world} but {', '.join(missing)} is not set; start with accelerate launch")
    rank = int(env.get("RANK", "0"))
    local_rank, local_world = int(env.get("LOCAL_RANK", str(rank))), int(env.get("LOCAL_WORLD_SIZE", str(world)))
    port = int(env.get("MASTER_PORT", "0"))
    return Place(rank, world, local_rank, local_world, env.get("MASTER_ADDR", "127.0.0.1"), port)


def _slurm_place(env: Mapping[str, str]) -> Place:
    """MASTER_ADDR is the step's first node and MASTER_PORT follows from the job's number, unless they are set."""
    host = env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"])
    step = int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])
    port = int(env.get("MASTER_PORT", 20000 + step % 10000))
    local_world = int(env["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0])
    rank, world = int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"])
    return Place(rank, world, int(env["SLURM_LOCALID"]), local_world, host, port)


def first_host(nodes: str) -> str:
    """The first host of Slurm's list: ``gpu[03-05,9],login`` is ``gpu03``."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]+)\]([^,]*))?", nodes)
    if match is None:
        raise UserError(f"SLURM_STEP_NODELIST: {nodes!r} names no host; set MASTER_ADDR to rank 0's host")
    prefix, numbers, suffix = match.groups(default="")
    return prefix + re.split("[,-]", numbers)[0] + suffix


def require_sharding(stage: str, sharding: str, env: Mapping[str, str]) -> None:
    """UserError where accelerate was asked for another sharding than params.yaml has."""
    if env.get("ACCELERATE_USE_FSDP") != "true":
        return
    if sharding == "none":
        raise UserError(
            f"{stage}.sharding: none in params.yaml, but accelerate was started with --use_fsdp;"
            f" set {stage}.sharding: base, or start without it"
        )
    for name, value in SHARDING.items():
        if env.get(name, value) != value:
            raise UserError(
                f"{stage}.sharding: {sharding} has {name}={value}, but accelerate was started with {env[name]};"
                f" start with --{name.lower()} {value}"
            )


@contextmanager
def place_of(stage: str, processes: int, threads: int, root: Path) -> Iterator[Place | None]:
    """This process's place among ``processes`` that run ``stage`` in ``root``, None where it is the only one.

    Starts the others where no launcher has, and waits for them at the end. UserError where a launcher started another
    number: the count is a parameter, since the last digits of the results depend on it.
    """
    place = found_place(os.environ)
    if place is not None and place.world > 1:
        if place.world != processes:
            raise UserError(
                f"{stage}.processes: {processes} in params.yaml, but {place.world} processes were started;"
                f" set {stage}.processes: {place.world}, or start that many"
            )
        with _variables(place.environment() | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}):
            yield place
        return
    if processes == 1:
        yield None
        return
    with _started(stage, processes, threads, root) as place:
        yield place


@contextmanager
def _started(stage: str, processes: int, threads: int, root: Path) -> Iterator[Place]:
    """Rank 0 of processes on this machine, the others started with the same command."""
    port = _free_port()
    own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
    places = [Place(rank, processes, rank, processes, "127.0.0.1", port) for rank in range(processes)]
    with ExitStack() as stack:
        for place in places[1:]:
            stack.enter_context(_child(stage, root, place.environment() | own))
        with _variables(places[0].environment() | own):
            yield places[0]


@contextmanager
def _child(stage: str, root: Path, env: Mapping[str, str]) -> Iterator[subprocess.Popen[Any]]:
    """`rtdmd <stage>` in ``root``, from this very package. It ends by itself, since it hears from this process when
    that ends or fails; if not, it is stopped."""
    package = str(Path(rtdmd.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    command = [sys.executable, "-P", "-m", "rtdmd", stage]
    with subprocess.Popen(
        command, cwd=root, env={**kept, **env, "PYTHONPATH": path}, stdin=subprocess.DEVNULL
    ) as child:
        try:
            yield child
        finally:
            with suppress(subprocess.TimeoutExpired):
                child.wait(LINGER)
            child.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables inside the ``with``."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
