"""world_verifier: the embedded world's exact verdict as a reward, soft_weight * soft + (1 - soft_weight) * strict.

Not differentiable: it stands for GenEval, whose detector and rules pass no gradient either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rtdmd.common.section import Real, param
from rtdmd.rewards.protocol import Metadata, check_batch, checked, require_metadata
from rtdmd.rewards.registration import FREE, Registration, RewardParams
from rtdmd.rewards.scorer import Scorer

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


class WorldVerifier(Scorer):
    """`rtdmd.world.verifier.verify` on the CPU. There are no weights, so in its identity thresholds stand for them."""

    range = (0.0, 1.0)

    def __init__(self, params: WorldVerifierParams, device: torch.device):
        from rtdmd.world.verifier import BACKGROUND_TOLERANCE, EMPTY_ENERGY, THRESHOLD

        thresholds = {"object": THRESHOLD, "empty": EMPTY_ENERGY, "background": BACKGROUND_TOLERANCE}
        super().__init__(params, device, [], soft_weight=params.soft_weight, thresholds=thresholds, version=VERSION)
        self.soft_weight = params.soft_weight

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """In [0, 1], on the images' device, without gradient."""
        from rtdmd.world.verifier import verify

        check_batch(images, prompts, metadata)
        records = [dict(record) for record in require_metadata(self.name, prompts, metadata)]
        verdict = verify(images.detach().cpu().float(), records)
        scores = self.soft_weight * verdict.soft + (1 - self.soft_weight) * verdict.strict
        return checked(self.name, scores.float()).to(images.device)


REWARD = Registration(WorldVerifierParams, WorldVerifier, FREE, example={"soft_weight": 0.5})
