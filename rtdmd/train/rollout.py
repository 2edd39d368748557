"""A rollout of stage two, and passes through its steps again.

It lies on the host: an epoch has thousands of latents, of which the device needs those of a micro-batch at a time. On a
GPU the host's memory for them is pinned, so that a micro-batch comes by a copy that the host does not wait for; that is
far quicker than the pass that reads it. Copies are made in the order of the passes, and every random number is drawn
on the host, so that nothing depends on when they arrive. On the CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rtdmd.flow.cps import cps_mean_std
from rtdmd.flow.credit import predicted_x0
from rtdmd.flow.path import x0_from_velocity
from rtdmd.train.losses import micro_batches

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Conditioning
    from rtdmd.rewards.reward_models import Batch
    from rtdmd.train.adapters import AdapterBank

CPU = torch.device("cpu")
Rows = slice | Sequence[int]


def pinned_cat(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Parts of a tensor, on the host, as one; in pinned memory where ``device``, to which it will go, is a GPU."""
    whole = torch.cat(list(parts))
    return whole.pin_memory() if device.type == "cuda" else whole


def to_device(part: Tensor, device: torch.device) -> Tensor:
    """A part of a tensor of the host on ``device``; the host goes on where its memory is pinned."""
    return part.to(device, non_blocking=part.is_pinned())


@dataclass(frozen=True)
class ImageConditioning:
    """The conditioning of N images: each prompt's row once, on the host, and which one an image has."""

    prompts: Conditioning
    of: list[int]
    device: torch.device

    @staticmethod
    def of_groups(cond: Conditioning, images: int, device: torch.device) -> ImageConditioning:
        """``cond``: a row for each group of neighbouring images, all groups of one size (1: a row for each image)."""
        if images % len(cond):
            raise ValueError(f"{images} images are not the groups of {len(cond)} texts")
        of = [row for row in range(len(cond)) for _ in range(images // len(cond))]
        return ImageConditioning(cond.to(CPU), of, device)

    def index(self, rows: Rows) -> Conditioning:
        """The rows of these images on the device; a prompt goes there once."""
        wanted = self.take(rows).of
        place = {row: i for i, row in enumerate(dict.fromkeys(wanted))}
        there = self.prompts.index(list(place)).to(self.device)
        return there if len(place) == len(wanted) else there.index([place[row] for row in wanted])

    def take(self, rows: Rows) -> ImageConditioning:
        """The texts of these images."""
        return replace(self, of=self.of[rows] if isinstance(rows, slice) else [self.of[row] for row in rows])


@dataclass(frozen=True)
class Rollout:
    """A finished rollout of N images: states[k] is x at sigmas[k] (K+1 of them), means[k] and stds[k] of the K-1
    stochastic transitions, conditioning, each image's prompt record and group number, and whether the images of a
    group are still equal at states[k] (K of them), and the sampler's stochasticity ``eta``. ``sigmas`` are on the
    device, all other tensors on the host."""

    states: list[Tensor]
    means: list[Tensor]
    stds: list[Tensor]
    sigmas: Tensor
    cond: ImageConditioning
    records: list[dict[str, Any]]
    groups: Tensor
    equal: tuple[bool, ...]
    eta: float

    def __len__(self) -> int:
        return len(self.groups)

    def state(self, k: int, rows: Rows) -> Tensor:
        """x at sigmas[k] of these images, on the device."""
        return to_device(self.states[k][rows], self.sigmas.device)

    def mean(self, k: int, rows: Rows) -> Tensor:
        """The mean of transition k of these images, on the device."""
        return to_device(self.means[k][rows], self.sigmas.device)

    def predicted_x0(self, rows: Rows, k: int) -> Tensor:
        """x̂_0 (B, C, H, W) that the generator predicted at step k of these images, without a pass; on the device."""
        if k == len(self.sigmas) - 2:
            return self.state(-1, rows)
        x = self.state(k, rows)
        sigma, tau = (self.sigmas[i].expand(len(x)) for i in (k, k + 1))
        return predicted_x0(x, self.mean(k, rows), sigma, tau, self.eta)

    def batch(self, rows: slice, images: Tensor) -> Batch:
        """Images (B, 3, H, W) of ``rows`` as rewards take them."""
        records = self.records[rows]
        return images, [record["prompt"] for record in records], [record["metadata"] for record in records]

    def take(self, rows: Sequence[int]) -> Rollout:
        """The chosen images, in the chosen order."""
        rows = list(rows)
        return replace(
            self,
            states=[x[rows] for x in self.states],
            means=[x[rows] for x in self.means],
            stds=[x[rows] for x in self.stds],
            cond=self.cond.take(rows),
            records=[self.records[row] for row in rows],
            groups=self.groups[rows],
        )

    def transition(self, adapters: AdapterBank, role: str, k: int, shared: SharedPass) -> tuple[Tensor, Tensor]:
        """Mean (B, C, H, W) and standard deviation (B,) of a role's transition at step k, for ``shared.rows``."""
        level = self.sigmas[k].expand(len(shared.run))
        v = adapters.velocity(role, self.state(k, shared.run), level, self.cond.index(shared.run))
        sigma, tau = (self.sigmas[i].expand(len(shared.rows)) for i in (k, k + 1))
        return cps_mean_std(self.state(k, shared.rows), v[shared.of], sigma, tau, self.eta)

    def repeat_step(self, adapters: AdapterBank, rows: slice, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_{k+1} and x̂_0 (B, C, H, W) from x at step k of ``rows``, with gradient, the rollout's noise fixed."""
        sigma, tau = (self.sigmas[i].expand(len(x)) for i in (k, k + 1))
        v = adapters.velocity("generator", x, sigma, self.cond.index(rows))
        if k == len(self.sigmas) - 2:
            x_next = x0_from_velocity(x, v, sigma)
        else:
            mean, _ = cps_mean_std(x, v, sigma, tau, self.eta)
            x_next = mean + (self.state(k + 1, rows) - self.mean(k, rows))
        return x_next, x0_from_velocity(x, v, sigma)

    def repeat_chain(self, adapters: AdapterBank, rows: slice) -> Tensor:
        """x̂_0 (B, C, H, W) of ``rows`` with the gradient of all K steps, the rollout's noises fixed.

        Each step's activations are dropped and computed again during the backward pass, so the memory is that of one
        step and K latents; the time is that of 2 K forward and K backward passes.
        """
        x = self.state(0, rows)
        for k in range(len(self.sigmas) - 1):
            # No step draws a number, so there is no state of a generator to keep.
            x, _ = checkpoint(self.repeat_step, adapters, rows, k, x, use_reentrant=False, preserve_rng_state=False)
        return x


class SharedPass(NamedTuple):
    """A micro-batch of a policy pass: the rows that are run, the needed rows they stand for, and which of the run rows
    stands for each of these."""

    run: list[int]
    rows: list[int]
    of: list[int]


def shared_passes(groups: Tensor | None, needed: Tensor, size: int) -> Iterator[SharedPass]:
    """The micro-batches that pass every needed image (N,). ``groups`` (N,): those whose images are equal, so that the
    first one's row stands for all of them; None where each row stands for itself.

    Micro-batches are filled up with other owners to ``size``: a pass over fewer images has other kernels, whose
    rounding in half precision would move the policy ratio off 1.
    """
    owners = torch.arange(len(needed))
    if groups is not None:
        _, group = torch.unique(groups, return_inverse=True)
        none = owners.new_full((int(group.max()) + 1,), len(needed))
        owners = none.scatter_reduce(0, group, owners, "amin")[group]
    wanted = torch.unique(owners[needed]).tolist()
    chosen = set(wanted)
    others = [row for row in torch.unique(owners).tolist() if row not in chosen]
    run = wanted + others[: -len(wanted) % size]
    for batch in micro_batches(len(run), size):
        place = {row: i for i, row in enumerate(run[batch])}
        rows = [row for row, owner in enumerate(owners.tolist()) if owner in place and needed[row]]
        yield SharedPass(run[batch], rows, [place[int(owners[row])] for row in rows])
