"""Everything measured on a stream of images: rewards, the verifier's verdict, features, and the few images kept for
the pictures.

Images are judged batch by batch and then dropped, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rtdmd.common.images import Pixels, to_uint8
from rtdmd.config import EvaluateParams
from rtdmd.evaluate.parses import Parses, parses_of
from rtdmd.evaluate.plan import Item
from rtdmd.evaluate.tables import Scores, scores_of
from rtdmd.rewards.clip import ClipReward
from rtdmd.rewards.protocol import Metadata, identities
from rtdmd.rewards.reward_models import CPU, RewardModels, load_rewards
from rtdmd.rewards.scorers.clipscore import ClipScoreParams
from rtdmd.rewards.scorers.clipscore import load as load_clip
from rtdmd.world.verifier import VERIFIER, Verdict, verify

Batch = tuple[Sequence[Item], Tensor]  # items and their images (B, 3, H, W) in [0, 1]
ImageKey = tuple[int, int]  # (prompt id, image index)
AHEAD = 2  # batches that may wait for a slow scorer


@dataclass(frozen=True)
class Judge:
    """The scorers of an evaluation, loaded once."""

    reward_models: RewardModels
    clip: ClipReward | None  # whose image embedding is the feature space

    @property
    def world(self) -> bool:
        """Whether the images are read with the world's verifier."""
        return VERIFIER in self.reward_models.rewards

    def of(self, names: Collection[str]) -> Judge:
        """The judge with the scorers of ``names`` alone; they are the same, loaded once."""
        return replace(self, reward_models=self.reward_models.only(names))

    def identities(self) -> dict[str, dict[str, Any]]:
        """What every scorer was, and the model whose embedding is the feature space as "features"."""
        features = {} if self.clip is None else {"features": identities([self.clip])[self.clip.name]}
        return identities(self.reward_models.rewards.values()) | features


@dataclass(frozen=True)
class Judged:
    """What was found on N images in the plan's order."""

    items: tuple[Item, ...]
    scores: Scores
    features: np.ndarray | None  # (N, D) unit vectors
    parses: Parses | None  # what the verifier read, of the world's images
    kept: dict[ImageKey, Pixels]  # (H, W, 3) bytes

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt of each image."""
        return [item.prompt.id for item in self.items]


def load_judge(params: EvaluateParams, device: torch.device, root: Path) -> Judge:
    """The scorers that `evaluate` names; the verifier's verdict is read where world_verifier is among them."""
    reward_models = load_rewards(params.rewards, device, root)
    clip = None
    if params.features_model is not None:
        spec = ClipScoreParams(name="clipscore", model=str((root / params.features_model).absolute()))
        clip = load_clip(spec, device)
    return Judge(reward_models, clip)


@torch.no_grad()
def image_features(clip: ClipReward, images: Tensor) -> np.ndarray:
    """Unit image embeddings (B, D) float64 of images (B, 3, H, W) in [0, 1]."""
    pixels = clip.transform(images.to(clip.device, torch.float32))
    embedded = clip.model.get_image_features(pixel_values=pixels).pooler_output
    return F.normalize(embedded, dim=-1).cpu().double().numpy()


def judge_images(judge: Judge, batches: Iterable[Batch], keep: Collection[ImageKey] = ()) -> Judged:
    """Judge a stream of batches; images named in `keep` are kept as bytes."""
    items: list[Item] = []
    features: list[np.ndarray] = []
    verdicts: list[Verdict] = []
    kept: dict[ImageKey, Pixels] = {}

    def seen() -> Iterator[tuple[Tensor, Sequence[str], Sequence[Metadata]]]:
        for chunk, images in batches:
            items.extend(chunk)
            prompts = [item.prompt.prompt for item in chunk]
            metadata = [item.prompt.metadata for item in chunk]
            if judge.world:
                verdicts.append(verify(images, metadata))
            if judge.clip is not None:
                features.append(image_features(judge.clip, images))
            wanted = [row for row, item in enumerate(chunk) if item.key in keep]
            if wanted:
                kept.update(zip([chunk[row].key for row in wanted], to_uint8(images[wanted]), strict=True))
            yield images, prompts, metadata

    with judge.reward_models.scoring(seen(), ahead=AHEAD) as scoring:
        # a scorer with a thread goes on while images are made
        columns = _columns(verdicts) | scoring.scores(CPU)
    return Judged(
        items=tuple(items),
        scores=scores_of(items, {name: values.double().numpy() for name, values in columns.items()}),
        features=np.concatenate(features) if features else None,
        parses=parses_of(items, verdicts) if verdicts else None,
        kept=kept,
    )


def _columns(verdicts: Sequence[Verdict]) -> dict[str, Tensor]:
    """The verdict's scores (N,), which stand before the rewards'; {} where there is none."""
    parts = {
        "strict": [verdict.strict for verdict in verdicts],
        "lenient": [verdict.lenient for verdict in verdicts],
        "soft": [verdict.soft for verdict in verdicts],
    }
    return {name: torch.cat(values).cpu() for name, values in parts.items() if values}
