"""world_verifier: the embedded world's exact verdict as a reward, soft_weight * soft + (1 - soft_weight) * strict.

Not differentiable: it stands for GenEval, whose detector and rules pass no gradient either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from rtdmd.common.section import Real, param
from rtdmd.rewards.protocol import Metadata, check_batch, checked, require_metadata
from rtdmd.rewards.registration import FREE, Registration, RewardParams

if TYPE_CHECKING:
    import torch
    from torch import Tensor

VERSION = 1  # raise it when the verdict of any image changes


class WorldVerifierParams(RewardParams):
    """The embedded world's exact verdict."""

    name: Literal["world_verifier"] = param("scorer", source="ours: rtdmd/world/verifier.py")
    soft_weight: Real = param(
        "a number from 0 to 1, the share of the soft score; the rest is strict 0/1", source="ours", ge=0, le=1
    )

    needs_metadata = True
    label = "Verifier reward"


def load(params: WorldVerifierParams, device: torch.device) -> WorldVerifier:
    """The verifier with the entry's ``soft_weight``. It always computes on the CPU and reads no files."""
    del device
    return WorldVerifier(params.soft_weight)


class WorldVerifier:
    """`rtdmd.rewards.protocol.Reward` over `rtdmd.world.verifier.verify`."""

    name = "world_verifier"
    differentiable = False
    needs_metadata = True
    range = (0.0, 1.0)

    def __init__(self, soft_weight: float):
        self.soft_weight = soft_weight

    def identity(self) -> dict[str, Any]:
        """There are no weights, so the thresholds stand for them."""
        from rtdmd.world.verifier import BACKGROUND_TOLERANCE, EMPTY_ENERGY, THRESHOLD

        thresholds = {"object": THRESHOLD, "empty": EMPTY_ENERGY, "background": BACKGROUND_TOLERANCE}
        return {"name": self.name, "soft_weight": self.soft_weight, "thresholds": thresholds, "version": VERSION}

    def to(self, device: torch.device) -> None:
        """It stays on the CPU."""

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """In [0, 1], on the images' device, without gradient."""
        from rtdmd.world.verifier import verify

        check_batch(images, prompts, metadata)
        records = [dict(record) for record in require_metadata(self.name, prompts, metadata)]
        verdict = verify(images.detach().cpu().float(), records)
        scores = self.soft_weight * verdict.soft + (1 - self.soft_weight) * verdict.strict
        return checked(self.name, scores.float()).to(images.device)


REWARD = Registration(WorldVerifierParams, load, FREE, example={"soft_weight": 0.5})
