"""The frozen bases in shards, one in each process: FSDP2 (`torch.distributed.fsdp.fully_shard`).

Each of a group of P processes keeps 1/P of the frozen weights of every transformer block. A block is gathered for its
forward pass, dropped, and gathered again for its backward pass. Gathered weights are the same bits, and adapters stay
whole everywhere: gradients, AdamW, averages and checkpoints are what they are without shards.

`sharding: base` has one group of all processes (FULL_SHARD); with `hybrid` every ``shard_group`` consecutive ranks are
one, and each group has the whole base (HYBRID_SHARD). No weight goes from group to group, since none of those that are
sharded learns.

A gather needs all processes of the group, but they have unequal passes to make: shares of the images differ, images of
zero advantage are not passed, the first process alone draws pictures, an error ends the work of one early. So before
each gather the group agrees on its block (`GatherScheduler`), and whoever has no use for it gathers along and drops it.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from rtdmd.train.distributed.ranks import PATIENCE, run_collective

if TYPE_CHECKING:
    from rtdmd.train.distributed.ranks import Ranks


def shard(blocks: Mapping[Any, Sequence[Any]], whole: Collection[nn.Parameter], ranks: Ranks, shards: int) -> None:
    """Divide the parameters of each transformer's ``blocks``, but for those in ``whole``, into ``shards``, in place;
    consecutive ranks hold one after the other, over and over. What is outside the blocks stays whole in every process.
    """
    # FLUX.1's single-stream blocks return views, and nothing is done to them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh, group = shard_mesh(ranks, shards)
    every = [block for own in blocks.values() for block in own]
    for block in every:
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=set(whole))
        block.set_custom_all_gather(Gather())
        block.set_modules_to_backward_prefetch([block])  # itself, that is none: a gather ahead would be out of turn
    for transformer in blocks:  # a root has no shards of its own; it gives its blocks common streams
        fully_shard(transformer, mesh=mesh, ignored_params=set(transformer.parameters()))
    ranks.before_collective.append(GatherScheduler(every, group).drain)


def shard_mesh(ranks: Ranks, shards: int) -> tuple[DeviceMesh, Any]:
    """The processes as fully_shard takes them: in one row, or (groups, ``shards``) where each group has the whole base;
    and this process's group on the CPU. ``shards`` divides the number of processes."""
    if shards == ranks.world:
        return init_device_mesh(ranks.device.type, (shards,)), ranks.group
    mesh = init_device_mesh(ranks.device.type, (ranks.world // shards, shards), mesh_dim_names=("replicate", "shard"))
    group, _ = dist.new_subgroups(shards, timeout=PATIENCE, backend="gloo")
    return mesh, group


def is_sharded(block: nn.Module) -> bool:
    """Whether the block's weights are shards now."""
    return any(isinstance(parameter, DTensor) for parameter in block.parameters())


class Gather:
    """FSDP's all-gather, by which a process that is gone is one line."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A buffer for the gathered block."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> Any:
        """Gather the ``input_tensor`` (n,) of every process of the group into ``output_tensor`` (P n,)."""
        return run_collective(
            lambda: dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)
        )


class GatherScheduler:
    """Which block the processes of a group gather next.

    A process's place in its pass is a number: i before block i of n in the forward pass, 2 n - 1 - i in the backward
    pass, 2 n where it needs none. The block of the smallest place is next: who is behind catches up, so that processes
    that fell apart go on together. The blocks of two bases stand in one line.
    """

    def __init__(self, blocks: Sequence[FSDPModule], group: Any) -> None:
        """``group``: of the processes that share a base, on the CPU."""
        self._blocks = blocks
        self._group = group
        self._end = 2 * len(blocks)
        for i, block in enumerate(blocks):
            self._watch(block, i, self._end - 1 - i)

    def drain(self) -> None:
        """Gather along with the others until no process needs a block."""
        self._wait(self._end)

    def _watch(self, block: Any, forward: int, backward: int) -> None:
        """Wait for the block's turn just before FSDP's own hooks gather it; of hooks, the first in line runs first."""

        def before(place: int, *_: Any) -> None:
            if is_sharded(block):
                self._wait(place)

        def after(_: nn.Module, inputs: Any, output: Any) -> None:
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(partial(before, backward))

        block.register_forward_pre_hook(partial(before, forward), prepend=True)
        block.register_forward_hook(after, prepend=True)

    def _wait(self, place: int) -> None:
        while (turn := self._agree(place)) != self._block(place):
            gather_along(self._blocks[turn])

    def _agree(self, place: int) -> int:
        """The number of the block that is next, -1 where no process needs one."""
        least = torch.tensor(place)
        run_collective(lambda: dist.all_reduce(least, dist.ReduceOp.MIN, group=self._group))
        return self._block(int(least))

    def _block(self, place: int) -> int:
        return min(place, self._end - 1 - place)


def gather_along(block: Any) -> None:
    """Take part in a gather that others need; the block stays as it was."""
    held = not is_sharded(block)
    if held:  # between the two terms of one backward pass
        block.reshard()
    block.unshard()
    if not held:
        block.reshard()
