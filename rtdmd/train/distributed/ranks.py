"""The processes of a training run: who does what, and the few things that they tell each other.

Every random number is named by (seed, stage, step, sample), so a process takes its share of a step's samples and
computes its part of the sums; gradients are added up in float32 and every process makes the same update. The number of
processes changes nothing but the order of additions. accelerate makes the process group and picks each process's device
(gloo on CPU, nccl on CUDA); figures and messages always go over gloo.

Shapes: N samples in the whole step, n of them here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.parsing import first_line
from rtdmd.common.signals import REQUEUE, Stopped
from rtdmd.common.torch_setup import configure
from rtdmd.config import RunParams, load_params
from rtdmd.pipeline.stage import Stage, open_stage
from rtdmd.train.distributed.launch import Place, answer_roll_call, no_answer, place_of, require_sharding
from rtdmd.train.distributed.nodes import FIRST_RANK

PATIENCE = timedelta(hours=1)  # for the slowest process, a checkpoint on a slow disk or a remote reward included
BUCKET = 2**25  # elements that are added up at a time, 128 MiB
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place. With one process every method is the identity and torch.distributed stays untouched."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: Any = None  # gloo, for figures and messages
    before_collective: list[Callable[[], None]] = field(default_factory=list)  # what others may need of this process

    @property
    def main(self) -> bool:
        """True for the one process that writes files and draws the progress bar."""
        return self.rank == 0

    def local_shard(self, count: int) -> range:
        """This process's part of ``range(count)``: contiguous, in the order of ranks, sizes at most one apart."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def all_reduce_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Add the processes' tensors up in place, in float32, the same bytes everywhere."""
        if self.world == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().float().flatten() for tensor in bucket])
            self._run_collective(lambda flat=flat: dist.all_reduce(flat))  # type: ignore[misc]
            for tensor, total in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def all_reduce(
        self, values: Mapping[str, float], reduction: Literal["sum", "mean", "max"] = "sum"
    ) -> dict[str, float]:
        """Sums, means or maxima over processes of values that each has under the same names."""
        if self.world == 1:
            return dict(values)
        flat = torch.tensor(list(values.values()), dtype=torch.float64)
        op = dist.ReduceOp.MAX if reduction == "max" else dist.ReduceOp.SUM
        self._run_collective(lambda: dist.all_reduce(flat, op, group=self.group))
        if reduction == "mean":
            flat /= self.world
        return dict(zip(values, flat.tolist(), strict=True))

    def all_gather_object(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        self._run_collective(lambda: dist.all_gather_object(found, value, group=self.group))
        return found

    def _run_collective(self, action: Callable[[], Any]) -> None:
        """Run a collective, once nobody needs this process for anything else."""
        for serve in self.before_collective:
            serve()
        run_collective(action)

    def all_gather(self, part: Tensor) -> Tensor:
        """(N, ...) of every process's (n, ...), in the order of ranks; n may differ."""
        return part if self.world == 1 else torch.cat(self.all_gather_object(part.detach().cpu())).to(part.device)

    def global_std(self, part: Tensor) -> float:
        """Standard deviation (unbiased) of all elements of all processes' tensors."""
        if self.world == 1:
            return part.std().item()
        values = part.detach().double()
        sums = self.all_reduce({"n": values.numel(), "x": values.sum().item(), "xx": values.square().sum().item()})
        return float(max(0.0, (sums["xx"] - sums["x"] ** 2 / sums["n"]) / (sums["n"] - 1)) ** 0.5)

    @contextmanager
    def sync_errors(self) -> Iterator[None]:
        """A stretch of work that each process does by itself. Where it fails in one, it fails in all, with the same
        error, before anyone waits for the one that is gone; a signal to one of them ends all as a signal does."""
        fault: BaseException | None = None
        try:
            yield
        except (RtdmdError, FloatingPointError, Stopped) as error:
            if self.world == 1:
                raise
            fault = error
        for rank, found in enumerate(self.all_gather_object(fault) if self.world > 1 else ()):
            if isinstance(found, Stopped):
                raise found from fault
            if found is not None:
                where = f" (process {rank} of {self.world})" if rank else ""
                raise type(found)(f"{found}{where}") from fault

    def assert_replicated(self, tensors: Iterable[Tensor], what: str) -> None:
        """RtdmdError unless every process holds the same bits."""
        if self.world == 1:
            return
        prints = self.all_gather_object([_fingerprint(tensor) for tensor in tensors])
        odd = [rank for rank, own in enumerate(prints) if own != prints[0]]
        if odd:
            raise RtdmdError(
                f"{what} of process {odd[0]} are not those of process 0: the processes no longer train one model;"
                " use machines of one kind, and remove the run folder under .rtdmd/runs"
            )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of up to BUCKET elements together, at least one."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _fingerprint(tensor: Tensor) -> tuple[int, int]:
    """Two sums over a tensor's bits (modulo 2^64), so that no order of additions matters."""
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    data = tensor.detach().contiguous().flatten().view(words)
    return int(data.sum(dtype=torch.int64)), int((data * torch.arange(len(data), device=data.device)).sum())


def run_collective(action: Callable[[], T]) -> T:
    """Run a collective; where another process is gone, that is one line."""
    try:
        return action()
    except RuntimeError as error:
        raise RtdmdError(
            "another process of the run ended or does not answer; its own error says why, and the same command goes on"
            f" from the last checkpoint ({first_line(error)})"
        ) from error


@contextmanager
def join(stage: str, processes: int, run: RunParams, root: Path = Path(".")) -> Iterator[Ranks]:
    """The processes of ``stage``, with threads and deterministic kernels set as ``run`` says. A process other than the
    first ends in silence where the error is everyone's: the first one tells it. (srun would tell of any code but 0.)
    What a process's own machine lacks it tells itself, before the first one waits for it."""
    own_device = configure(run)  # before CUDA starts
    with place_of(stage, processes, run, root) as place:
        if place is None:
            yield Ranks(device=own_device)
            return
        if run.device == "cuda":
            os.environ["LOCAL_RANK"] = str(own_gpu(place.local_rank, torch.cuda.device_count(), stage))
        answer_roll_call(place)
        try:
            with _group(run, place) as device:
                yield Ranks(place.rank, place.world, device, dist.new_group(backend="gloo", timeout=PATIENCE))
        except (RtdmdError, KeyboardInterrupt, Stopped) as error:
            if place.rank == 0:
                raise
            if FIRST_RANK in os.environ:
                raise SystemExit(0) from None
            raise SystemExit(REQUEUE if isinstance(error, Stopped) else 1) from None


def own_gpu(local_rank: int, count: int, stage: str) -> int:
    """Number of a process's GPU among the ``count`` that it sees: the only one where a scheduler shows each process its
    own, else that of its place on the machine. UserError where there is none."""
    if count == 1:
        return 0
    if local_rank >= count:
        raise UserError(
            f"{stage}.processes: process {local_rank + 1} of this machine finds {count} GPUs; one process for each GPU"
        )
    return local_rank


@contextmanager
def _group(run: RunParams, place: Place) -> Iterator[torch.device]:
    """accelerate's process group over this process's environment, and the device it gives this process."""
    from accelerate import PartialState

    def start() -> PartialState:
        try:
            return PartialState(cpu=run.device == "cpu", timeout=PATIENCE)
        except dist.DistNetworkError as error:
            if place.rank == 0:
                raise no_answer(place.host, place.port, error) from error
            raise

    state = run_collective(start)
    try:
        yield state.device
    finally:
        state.destroy_process_group()
        PartialState._reset_state()


@contextmanager
def open_stage_on_all_ranks(name: str, root: Path = Path(".")) -> Iterator[tuple[Stage, Ranks]]:
    """`open_stage` by the first process; the others get the open stage from it, without lock and without outputs.

    Those that it starts work in ``root``, where no other relative path of the first one leads to the same files.
    """
    if root != Path("."):
        root = root.absolute()
    params = load_params(root / "params.yaml")
    section = getattr(params, name)
    require_sharding(name, section.sharding, os.environ)
    with join(name, section.processes, params.run, root) as ranks, ExitStack() as stack:
        stage: Any = None
        with ranks.sync_errors():
            if ranks.main:
                stage = stack.enter_context(open_stage(name, root))
        yield ranks.all_gather_object(stage)[0], ranks
