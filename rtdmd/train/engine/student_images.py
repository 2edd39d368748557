"""Images of the EMA generator, the student as it would be delivered now: for a validation, and for a watch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rtdmd.backbones.sampling import ImageNoise, sample

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Conditioning
    from rtdmd.train.engine.protocols import Trainer
    from rtdmd.train.learner import EMA


@contextmanager
def ema_weights(ema: EMA) -> Iterator[None]:
    """The average in the generator's place; the weights that learn are back afterwards, bit by bit."""
    ema.swap()
    try:
        yield
    finally:
        ema.swap()


@torch.no_grad()
def student_images(trainer: Trainer, noise: ImageNoise, cond: Conditioning, sigmas: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] of the generator as it is, over levels ``sigmas`` (K+1,), without guidance."""

    def velocity(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return trainer.adapters.velocity("generator", x, sigma, cond)

    return trainer.backbone.decode(sample(velocity, noise, cond, sigmas, trainer.params.model.eta))
