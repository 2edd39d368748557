"""What loss terms, the watch and validations use of a stage's trainer, whose module imports theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from rtdmd.backbones.protocol import Backbone, Conditioning
    from rtdmd.config import Params
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.rewards.reward_models import Batch, RewardModels
    from rtdmd.train.adapters import AdapterBank
    from rtdmd.train.distributed.ranks import Ranks
    from rtdmd.train.learner import EMA, Terms
    from rtdmd.train.rollout import Rollout


class Trainer(Protocol):
    """Of either stage."""

    params: Params
    backbone: Backbone
    adapters: AdapterBank
    ema: EMA
    ranks: Ranks
    sigmas: Tensor
    null: Conditioning


class StageTwoTrainer(Trainer, Protocol):
    """Of stage two."""

    p: TrainRtdmdParams
    eta: float
    rewards: RewardModels

    def images(self, rollout: Rollout) -> Iterator[Batch]: ...

    def advantages(self, scores: Mapping[str, Tensor], groups: Tensor) -> Tensor: ...

    def policy_gradient(
        self,
        rollout: Rollout,
        advantages: Tensor,
        trained: Sequence[int],
        terms: Terms,
        all_ranks: Tensor | None = None,
    ) -> dict[str, float]: ...
