"""Step 3 of stage two: the gradient of the differentiable rewards at the estimates x̂_0 of a rollout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rtdmd.rewards.reward_models import MAX_WAITING, Batch
from rtdmd.train.baseline_losses import relative_gradients
from rtdmd.train.losses import micro_batches
from rtdmd.train.rollout import CPU, Rollout

if TYPE_CHECKING:
    from rtdmd.train.engine.protocols import StageTwoTrainer
    from rtdmd.train.losses import Draws


def reward_grad_outputs(
    trainer: StageTwoTrainer, rollout: Rollout, seen: int, total: int, draws: Draws
) -> Iterator[tuple[Tensor, float]]:
    """Of each micro-batch the gradient at x̂_0 (B, C, H, W) of its part of the rewards' loss, and that part: over
    ``total`` images the mean of relu(m - Σ w r) of the differentiable rewards of the decoded x̂_0 that the
    generator predicted at step ``seen``.

    Where one of them is offloaded each comes to the device once, for many images that wait on the host; they are
    decoded again for the gradient, which gives the same bits.
    """
    p = trainer.p
    weights = {spec.name: spec.weight for spec in p.rewards if spec.differentiable}
    in_turn = not trainer.rewards.offloaded.isdisjoint(weights)
    at_once = 1  # micro-batches
    if in_turn:
        height, width = trainer.params.model.size
        each = 2 * p.micro_batch * 3 * 4 * height * width  # bytes of images and their gradients
        at_once = max(1, MAX_WAITING // each)
    parts = list(micro_batches(len(rollout), p.micro_batch))
    for some in micro_batches(len(parts), at_once):
        batches = list[Batch]()
        for rows in parts[some]:
            with torch.set_grad_enabled(not in_turn):
                x0 = rollout.predicted_x0(rows, seen).detach().requires_grad_()
                images = trainer.backbone.decode(x0)
            batches.append(rollout.batch(rows, images.detach().to(CPU) if in_turn else images.detach()))
        if p.relative.liked:
            gradients = relative_gradients(trainer.rewards, batches, weights, p.relative, draws)
        else:
            gradients = trainer.rewards.gradients(batches, weights)
        for rows, (rewards, slope) in zip(parts[some], gradients, strict=True):
            if in_turn:
                x0 = rollout.predicted_x0(rows, seen).detach().requires_grad_()
                images = trainer.backbone.decode(x0)
            left = p.backprop_margin - rewards.to(images.device)
            slope = slope.to(images.device) * (-(left > 0).to(slope.dtype) / total)[:, None, None, None]
            (grad_output,) = torch.autograd.grad(images, x0, slope)
            yield grad_output, torch.relu(left).sum().item() / total
