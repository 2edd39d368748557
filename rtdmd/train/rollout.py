"""A rollout of stage two. It lies on the host: an epoch has thousands of latents, of which the device needs those of
a micro-batch at a time.

On a GPU the host's memory for them is pinned, so that a micro-batch comes by a copy that the host does not wait for;
it takes far less time than the pass that reads it. Copies are made in the order of the passes, and every random number
is drawn on the host, so that nothing depends on when they arrive. On the CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rtdmd.flow.credit import predicted_x0

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Conditioning

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
    group are still equal at states[k] (K of them). ``sigmas`` are on the device, all other tensors on the host."""

    states: list[Tensor]
    means: list[Tensor]
    stds: list[Tensor]
    sigmas: Tensor
    cond: ImageConditioning
    records: list[dict[str, Any]]
    groups: Tensor
    equal: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def device(self) -> torch.device:
        """Where passes run."""
        return self.sigmas.device

    def state(self, k: int, rows: Rows) -> Tensor:
        """x at sigmas[k] of these images, on the device."""
        return to_device(self.states[k][rows], self.device)

    def mean(self, k: int, rows: Rows) -> Tensor:
        """The mean of transition k of these images, on the device."""
        return to_device(self.means[k][rows], self.device)

    def predicted_x0(self, rows: Rows, k: int, eta: float) -> Tensor:
        """x̂_0 (B, C, H, W) that the generator predicted at step k of these images, without a pass; on the device."""
        if k == len(self.sigmas) - 2:
            return self.state(-1, rows)
        x = self.state(k, rows)
        sigma, tau = (self.sigmas[i].expand(len(x)) for i in (k, k + 1))
        return predicted_x0(x, self.mean(k, rows), sigma, tau, eta)

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
