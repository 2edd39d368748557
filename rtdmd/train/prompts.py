"""Training prompts with their cached conditioning: which prompt is used at which position of which step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rtdmd.backbones.protocol import Conditioning
from rtdmd.files import read_jsonl
from rtdmd.rng import epoch_order
from rtdmd.stage import Stage
from rtdmd.textcache import TextCache, open_text_cache


@dataclass(frozen=True)
class TrainingPrompts:
    """The training prompts in file order, the text cache, and the run's seed."""

    records: list[dict[str, Any]]
    cache: TextCache
    seed: int

    @staticmethod
    def open(stage: Stage, device: torch.device) -> TrainingPrompts:
        """The training prompts of an open stage, conditioning on ``device``."""
        records = read_jsonl(stage.input("results/prepare_prompts/train.jsonl"))
        return TrainingPrompts(records, open_text_cache(stage, "train").to(device), stage.seed)

    def batch(self, step: int, size: int, stream: str) -> list[dict[str, Any]]:
        """Records of step ``step``: a window of an endless stream, one seeded permutation of all prompts an epoch."""
        rows = epoch_order(len(self.records), step * size, size, self.seed, stream, "prompts")
        return [self.records[row] for row in rows]

    def conditioning(self, records: list[dict[str, Any]]) -> Conditioning:
        """Conditioning of records, one row each."""
        return self.cache.of(record["prompt"] for record in records)
