"""What every differentiable scorer has to pass, and the pictures and prompts for it."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch import Tensor

from rtdmd.rewards.protocol import Reward

PROMPTS = ["a photo of a red circle", "a photo of two squares", "a photo of a blue cross"]
NONE = [None] * 3
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)


def pictures(height: int = 36, width: int | None = None) -> Tensor:
    shape = (3, 3, height, width or height)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def waves(height: int, width: int, shift: int = 0) -> Tensor:
    """A picture (3, H, W) of 8-bit values in [0, 1] with detail at several scales."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    planes = [torch.sin((5 + c + shift) * x + (9 - 2 * c) * y * (1 + x) + c + shift) for c in range(3)]
    return ((torch.stack(planes) * 0.5 + 0.5) * 255).round() / 255


def as_pil(images: Tensor) -> list[Image.Image]:
    """Images (B, 3, H, W) in [0, 1], rounded to bytes."""
    return [Image.fromarray(one) for one in (images * 255).round().byte().permute(0, 2, 3, 1).numpy()]


def derivatives(reward: Reward, size: int, step: float) -> tuple[float, float]:
    """The summed scores' derivative along a random direction: from the gradient, and as a central difference."""
    images = (0.2 + 0.6 * pictures(size)).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(images, PROMPTS, NONE).sum(), images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        up, down = (reward.score(images + s * step * direction, PROMPTS, NONE).sum() for s in (1, -1))
    return (gradient * direction).sum().item(), (up - down).item() / (2 * step)


def check_gradient(reward: Reward, size: int, step: float = 2e-3, rel: float = 0.02) -> None:
    """The directional derivative along a random direction equals the central difference, and is not zero."""
    slope, difference = derivatives(reward, size, step)
    assert slope == pytest.approx(difference, rel=rel)
    assert abs(slope) > 0


def check_one_by_one(reward: Reward, tolerance: float = 1e-6) -> None:
    """A batch's scores are those of its images alone, and they differ from each other."""
    together = reward.score(pictures(), PROMPTS, NONE)
    alone = torch.cat([reward.score(pictures()[i : i + 1], PROMPTS[i : i + 1], [None]) for i in range(3)])
    assert together.shape == (3,) and together.dtype == torch.float32
    assert (together - alone).abs().max() < tolerance
    assert together.unique().numel() == 3


def check_identity(reward: Reward, weights: str) -> None:
    """JSON that names the scorer, its weights' hash, template and version."""
    identity = reward.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert len(identity["files"][weights]) == 64
    assert {"name", "files", "template", "version"} <= identity.keys()


def check_scorer(reward: Reward, weights: str, tolerance: float = 1e-6) -> None:
    """Gradients at the model's own size and through resizing, a batch one by one, and the identity."""
    check_gradient(reward, 36)
    check_gradient(reward, 50)
    check_one_by_one(reward, tolerance)
    check_identity(reward, weights)
