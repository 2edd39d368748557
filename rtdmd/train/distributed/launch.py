"""How a run becomes several processes: started by a launcher (accelerate, torchrun, srun), or by its own first process.

Every process runs the same command. Its place among them comes from the environment; where no launcher has set one and
params.yaml asks for several processes, this process becomes rank 0 and starts the others on the same machine, and on
the other nodes of its Slurm job (`nodes.py`). Each answers a roll call before anyone waits for all.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed import DistNetworkError, TCPStore

import rtdmd
from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.parsing import first_line
from rtdmd.config import RunParams
from rtdmd.train.distributed.nodes import FIRST_RANK, SRUN, address, first_host, on_other_nodes, require_allocation

SHARDING = {
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",  # adapter.gradient_checkpointing does that
}
"""What `sharding: base` and `hybrid` are in the variables of `accelerate launch --use_fsdp`."""
LINGER = 30.0  # seconds that a started process may take to end after this one
PAUSE = 0.05  # seconds between two looks at who has come
ROLL_CALL = "RTDMD_ROLL_CALL"  # the variable that asks a started process to say that it is there, and where it does


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
    where there is none. A task that the stage started has the latter, whatever else the job's environment says.
    UserError where a variable is missing."""
    if "WORLD_SIZE" in env and FIRST_RANK not in env:
        return _torch_place(env)
    if FIRST_RANK in env or int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _slurm_place(env)
    return None


def _torch_place(env: Mapping[str, str]) -> Place:
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]
    world = _number(env, "WORLD_SIZE")
    if missing and world > 1:
        raise UserError(f"WORLD_SIZE is {world} but {', '.join(missing)} is not set; start with accelerate launch")
    rank = _number(env, "RANK", 0)
    local_rank = _number(env, "LOCAL_RANK", rank)
    local_world = _number(env, "LOCAL_WORLD_SIZE", world)
    return Place(rank, world, local_rank, local_world, env.get("MASTER_ADDR", "127.0.0.1"), _master_port(env))


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A variable's whole number; ``default`` where it is not set. UserError for anything else."""
    text = env.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{name}: {text!r} in the environment; allowed: a whole number, or unset it")
    return int(text)


def _master_port(env: Mapping[str, str], default: int = 0) -> int:
    port = _number(env, "MASTER_PORT", default)
    if port >= 2**16:
        raise UserError(f"MASTER_PORT: {port} in the environment; allowed: 1 to {2**16 - 1}")
    return port


def _slurm_place(env: Mapping[str, str]) -> Place:
    """MASTER_ADDR is the step's first node and MASTER_PORT follows from the job's number, unless they are set."""
    host = env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"])
    step = int(env["SLURM_JOB_ID"]) + int(env["SLURM_STEP_ID"])
    port = _master_port(env, 20000 + step % 10000)
    local_world = int(env["SLURM_STEP_TASKS_PER_NODE"].split("(")[0].split(",")[0])
    first = _number(env, FIRST_RANK, 0)
    rank = first + int(env["SLURM_PROCID"])
    world = first + int(env["SLURM_STEP_NUM_TASKS"])
    return Place(rank, world, int(env["SLURM_LOCALID"]), local_world, host, port)


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
def place_of(stage: str, processes: int, run: RunParams, root: Path) -> Iterator[Place | None]:
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
        with _variables(place.environment() | _threads(run)):
            yield place
        return
    if processes == 1:
        yield None
        return
    with _started(stage, processes, run, root) as place:
        yield place


@contextmanager
def _started(stage: str, processes: int, run: RunParams, root: Path) -> Iterator[Place]:
    """Rank 0, the others started with the same command: those of this node, and those of all other nodes by srun."""
    here = min(processes, run.gpus_per_node or processes)
    host = "127.0.0.1"
    port = 0  # any that is free
    if here < processes:
        require_allocation(stage, processes, here, os.environ)
        host = address(os.environ)
        port = _master_port(os.environ)
    command = [sys.executable, "-P", "-m", "rtdmd", stage]
    store = _listen(host, port)
    places = [Place(rank, processes, rank, here, host, store.port) for rank in range(here)]
    own = _threads(run) | {ROLL_CALL: "1"}
    with _ended_together() as children:
        for place in places[1:]:
            children.append(_child(command, root, place.environment() | own))
        if here < processes:
            there = own | {"MASTER_ADDR": host, "MASTER_PORT": str(store.port), FIRST_RANK: str(here)}
            children.append(_child(on_other_nodes(command, processes, here, run.threads), root, there))
        _call_roll(store, processes - 1, children)
        with _variables(places[0].environment() | _threads(run)):
            yield places[0]


def _listen(host: str, port: int) -> TCPStore:
    """The store of rank 0, which torch's own finds at its port, and is the same. UserError where this process cannot
    answer there; torch itself would try an address that is not this machine's for ten minutes."""
    try:
        socket.create_server((host, 0)).close()
    except OSError as error:  # of the resolver too
        raise UserError(
            f"MASTER_ADDR: {host} is no address of this node ({error.strerror}); set MASTER_ADDR to one by which the"
            " other nodes find it"
        ) from error
    try:
        return TCPStore(host, port, is_master=True, wait_for_workers=False, multi_tenant=True)
    except DistNetworkError as error:
        raise no_answer(host, port, error) from error


def no_answer(host: str, port: int, error: DistNetworkError) -> UserError:
    """What a user can do where rank 0 cannot answer at its own address."""
    return UserError(
        f"MASTER_PORT: the first process cannot answer at {host}:{port} ({first_line(error)}); set another MASTER_PORT,"
        " free on that node, in the environment"
    )


def _threads(run: RunParams) -> dict[str, str]:
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(run.threads))}


def _call_roll(store: TCPStore, count: int, children: Sequence[subprocess.Popen[Any]]) -> None:
    """Wait until ``count`` others have answered: a start on another node may take minutes. RtdmdError, and all are
    ended, where one ends before."""
    try:
        while store.add(ROLL_CALL, 0) < count:
            for child in children:
                code = child.poll()
                if code is not None:
                    raise RtdmdError(
                        f"a process of the run ended with {code} before it took part; its own error says why:"
                        f" `{shlex.join(child.args)}`"  # type: ignore[arg-type]
                    )
            time.sleep(PAUSE)
    except BaseException:
        _end(children)
        raise


def answer_roll_call(place: Place) -> None:
    """Tell rank 0, where it asks, that this process is there and finds on its machine what it needs."""
    if os.environ.pop(ROLL_CALL, None):
        TCPStore(place.host, place.port, is_master=False, wait_for_workers=False).add(ROLL_CALL, 1)


@contextmanager
def _ended_together() -> Iterator[list[subprocess.Popen[Any]]]:
    """The processes that are started inside the ``with``. They end by themselves, since they hear from this one when it
    ends or fails; those that have not `LINGER` seconds later are ended."""
    children: list[subprocess.Popen[Any]] = []
    try:
        yield children
    finally:
        try:
            _wait(children)
        finally:
            _end(children)


def _child(command: Sequence[str], root: Path, env: Mapping[str, str]) -> subprocess.Popen[Any]:
    """A command in ``root`` that runs this very package. Ctrl-C is for this process alone where srun would take it
    too."""
    package = str(Path(rtdmd.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    group = 0 if command[0] == SRUN else None
    return subprocess.Popen(
        command, cwd=root, env={**kept, **env, "PYTHONPATH": path}, stdin=subprocess.DEVNULL, process_group=group
    )


def _wait(children: Sequence[subprocess.Popen[Any]]) -> None:
    """Until all have ended, `LINGER` seconds at most for all together."""
    limit = time.monotonic() + LINGER
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, limit - time.monotonic()))


def _end(children: Sequence[subprocess.Popen[Any]]) -> None:
    """Kill processes; srun, asked to end, kills its tasks on all nodes first."""
    steps = [child for child in children if child.args[0] == SRUN]  # type: ignore[index]
    for child in steps:
        child.terminate()
    _wait(steps)
    for child in children:
        child.kill()
    for child in children:
        child.wait()


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
