"""Which student of stage two is kept: the one of the best validation, on training prompts that were set aside.

The held-out prompts of the evaluation take no part, so its figures stay those of unseen captions. A validation samples
the EMA generator, always from the same noise, and takes the weighted mean reward and the diversity: the mean
distance of two images of one prompt. Best is the largest reward among the students that keep ``min_diversity`` of the
stage-one student's diversity; that student is the first candidate. All of it is part of a checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rtdmd.backbones.sampling import ImageNoise
from rtdmd.common.rng import key_seed
from rtdmd.common.sums import sum_in_order
from rtdmd.train.engine import checkpoint
from rtdmd.train.engine.student_images import ema_weights, student_images
from rtdmd.train.losses import micro_batches

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Conditioning
    from rtdmd.config.validation import ValidationParams
    from rtdmd.rewards.reward_models import Batch
    from rtdmd.train.engine.protocols import StageTwoTrainer


@dataclass
class Validation:
    """The validations of a run: ``trainer`` is the stage's, ``records`` the prompts set aside with ``cond``, a row
    each."""

    p: ValidationParams
    trainer: StageTwoTrainer
    records: list[dict[str, Any]]
    cond: Conditioning | None
    best: list[Tensor] = field(default_factory=list)  # of the average
    start_diversity: float = 0.0
    reward: float = 0.0  # of the best
    epoch: int = 0  # of the best
    misses: int = 0  # validations since

    def before(self, step: int) -> dict[str, float]:
        """Before the first epoch: the stage-one student is the first candidate, and the measure of diversity."""
        if not self.p.every or step > 0:
            return {}
        self.reward, self.start_diversity = self.measure_once()
        self._keep(0)
        return {"validation/start_reward": self.reward, "validation/start_diversity": self.start_diversity}

    def after(self, done: int) -> dict[str, float]:
        """After ``done`` epochs, where a validation is due: its figures, and the best student's epoch."""
        if not self.p.every or done % self.p.every:
            return {}
        reward, diversity = self.measure_once()
        self.misses += 1
        if reward > self.reward and diversity >= self.p.min_diversity * self.start_diversity:
            self.reward = reward
            self._keep(done)
        return {"validation_reward": reward, "validation_diversity": diversity, "validation_best": float(self.epoch)}

    def should_stop(self) -> bool:
        """True when ``patience`` validations in a row found no better student."""
        return 0 < self.p.patience <= self.misses

    def _keep(self, epoch: int) -> None:
        self.best = [tensor.clone() for tensor in self.trainer.ema.tensors]
        self.epoch = epoch
        self.misses = 0

    def restore_best(self) -> dict[str, str]:
        """Make the best student the average, where there were validations; what to say of it in its file. Where none
        was better than stage one's, the run delivers that one, and a line on standard error says so."""
        if not self.p.every:
            return {}
        if self.epoch == 0:
            print(
                f"train_rtdmd: no validated student had a larger reward than stage one's ({self.reward:.4g}) with"
                f" {self.p.min_diversity:g} of its diversity; generator.safetensors is stage one's student, unchanged"
                " (train_rtdmd.validation)",
                file=sys.stderr,
            )
        checkpoint.copy_indexed(self.trainer.ema.tensors, checkpoint.indexed(self.best))
        return {"epoch": str(self.epoch)}

    def measure_once(self) -> tuple[float, float]:
        """What the first process measures, in every process, so that all keep and end alike."""
        ranks = self.trainer.ranks
        with ranks.sync_errors():
            found = self.measure() if ranks.main else (0.0, 0.0)
        return ranks.all_gather_object(found)[0]

    @torch.no_grad()
    def measure(self) -> tuple[float, float]:
        """Weighted mean reward and diversity of the EMA generator."""
        distances = list[Tensor]()
        with (
            ema_weights(self.trainer.ema),
            self.trainer.rewards.scoring(self._images(distances)) as scoring,
        ):
            scores = scoring.scores(self.trainer.sigmas.device)
        rewards = self.trainer.params.train_rtdmd.rewards
        total = sum_in_order(spec.weight * scores[spec.name].double().mean().item() for spec in rewards)
        return total, torch.cat(distances).double().mean().item()

    def _images(self, distances: list[Tensor]) -> Iterator[Batch]:
        """Every prompt's images, whole prompts at a time, their distances (one a prompt) added to ``distances``."""
        trainer = self.trainer
        each = self.p.images
        shape = trainer.backbone.latent_shape()
        device = trainer.sigmas.device
        for part in micro_batches(len(self.records), max(1, trainer.params.train_rtdmd.micro_batch // each)):
            rows = [row for row in range(part.start, part.stop) for _ in range(each)]
            keys = [(row, i % each) for i, row in enumerate(rows)]
            noise = ImageNoise(key_seed(trainer.params.run.seed, "validation"), keys, shape, device)
            assert self.cond is not None
            images = student_images(trainer, noise, self.cond.index(rows), trainer.sigmas)
            distances.append(group_diversity(images, each))
            prompts = [self.records[row]["prompt"] for row in rows]
            metadata = [self.records[row]["metadata"] for row in rows]
            yield images, prompts, metadata

    def tensors(self, name: str) -> dict[str, dict[str, Tensor]]:
        """For a checkpoint; see `Learner.tensors`."""
        record = {key: torch.tensor(getattr(self, key), dtype=torch.float64) for key in _RECORD}
        return {f"{name}_best": checkpoint.indexed(self.best), f"{name}_record": record}

    def restore(self, name: str, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse of ``tensors``."""
        self.best = [tensor.clone() for tensor in self.trainer.ema.tensors]
        checkpoint.copy_indexed(self.best, groups[f"{name}_best"])
        for key, kind in _RECORD.items():
            setattr(self, key, kind(groups[f"{name}_record"][key].item()))


_RECORD = {"start_diversity": float, "reward": float, "epoch": int, "misses": int}


def group_diversity(images: Tensor, each: int) -> Tensor:
    """Mean root-mean-square difference of two images of a prompt, (P,), of P x ``each`` images (P each, C, H, W)."""
    flat = images.float().flatten(1).unflatten(0, (-1, each))
    return torch.stack([torch.pdist(group).mean() for group in flat]) / flat.shape[-1] ** 0.5
