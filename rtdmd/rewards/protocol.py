"""What every reward offers, and the checks that they share. An exception is never a score: a fault stops the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rtdmd.common.errors import NonFiniteError, UserError
from rtdmd.common.files import sha256_bytes

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

Metadata = Mapping[str, Any] | None
Pixels = Literal["floats", "bytes"]
"""What a scorer reads where no gradient is asked for."""


class Reward(Protocol):
    """A scorer. Higher is better; ``range`` is where scores can lie (used to check them, not to rescale)."""

    name: str
    differentiable: bool  # whether `score` passes gradients to the images
    needs_metadata: bool  # whether a prompt without metadata cannot be scored
    range: tuple[float, float]

    def identity(self) -> dict[str, Any]:
        """Name, weight hashes, text template and version: what must be equal for two scores to be comparable."""
        ...

    def to(self, device: torch.device) -> None:
        """Move the weights; scores are computed there from now on. Nothing happens where there are none to move."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1], which may lie on another device than the weights.

        Raises UserError where metadata is needed and missing, ValueError where the lengths differ.
        """
        ...


def identities(rewards: Iterable[Reward]) -> dict[str, dict[str, Any]]:
    """What each scorer was, by its name: its identity as result files keep it, ready for JSON."""
    found = {}
    for reward in rewards:
        found[reward.name] = {key: value for key, value in reward.identity().items() if key != "name"}
    return found


def check_batch(images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> None:
    """ValueError unless there are B images (B, 3, H, W), B prompts and B metadata records."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images) == len(prompts) == len(metadata):
        got = f"{tuple(images.shape)} images, {len(prompts)} prompts, {len(metadata)} metadata records"
        raise ValueError(f"a reward scores (B, 3, H, W) images with B prompts and B metadata records, got {got}")


def require_metadata(name: str, prompts: Sequence[str], metadata: Sequence[Metadata]) -> list[Mapping[str, Any]]:
    """The metadata, none of it None; UserError that names the first prompt without."""
    present = [record for record in metadata if record is not None]
    if len(present) < len(metadata):
        prompt = prompts[next(i for i, record in enumerate(metadata) if record is None)]
        raise UserError(
            f"reward {name} needs metadata, but the prompt {prompt!r} has none; see prepare_prompts in params.yaml"
        )
    return present


def checked(name: str, scores: Tensor) -> Tensor:
    """The scores (B,), after checking that they are finite."""
    finite = scores.isfinite()
    if not finite.all():
        raise NonFiniteError(f"reward {name} gave a score that is not finite, at image {int((~finite).nonzero()[0])}")
    return scores


def asks_gradient(images: Tensor) -> bool:
    """Whether a score of these images is to be propagated back to them."""
    import torch

    return torch.is_grad_enabled() and images.requires_grad


def as_read(name: str, images: Tensor, pixels: Pixels) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] as a scorer reads them: bytes where ``pixels`` says so and no gradient is asked for
    (rounding has none), else float32. Errors as in `to_bytes`."""
    return to_bytes(name, images) if pixels == "bytes" and not asks_gradient(images) else images.float()


def to_bytes(name: str, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] rounded to the nearest of 256 levels, as uint8, on their device.

    Raises NonFiniteError that names the first image with a pixel that is not finite.
    """
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        raise NonFiniteError(f"reward {name} got a pixel that is not finite, at image {int((~finite).nonzero()[0])}")
    return (images.detach().float().clamp(0, 1) * 255).round().byte()


def as_bytes(name: str, images: Tensor) -> NDArray[np.uint8]:
    """Images as in `to_bytes`, as a PNG would keep them, (B, H, W, 3): for scorers that pass no gradient."""
    return to_bytes(name, images).permute(0, 2, 3, 1).cpu().numpy()


@dataclass(frozen=True)
class Case:
    """I pictures (I, 3, H, W) in [0, 1], P prompts with their metadata; what I a person would see says ``seen``."""

    pictures: Tensor
    seen: Sequence[str]
    prompts: Sequence[str]
    metadata: Sequence[Metadata] = field(default=(None, None))
    varies: bool = True  # whether the pictures of one prompt must not all score the same

    def crossed(self) -> tuple[Tensor, list[str], list[Metadata]]:
        """All P * I pairs, prompt by prompt: images (P * I, 3, H, W), prompts and metadata."""
        number = len(self.pictures)
        prompts = [prompt for prompt in self.prompts for _ in range(number)]
        metadata = [record for record in self.metadata for _ in range(number)]
        return self.pictures.repeat(len(self.prompts), 1, 1, 1), prompts, metadata

    def digest(self) -> str:
        """Hash of pictures, prompts and metadata: records of other pictures are not comparable."""
        pixels = (self.pictures * 255).round().byte().numpy().tobytes()
        return sha256_bytes(pixels + repr((list(self.prompts), list(self.metadata))).encode())
