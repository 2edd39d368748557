"""Everything measured on a stream of images: rewards, the verifier's verdict, features, and the few images kept for
the pictures.

Images are judged batch by batch and then dropped, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rtdmd.config import EvaluateParams, RewardParams
from rtdmd.evaluate.plan import Item
from rtdmd.evaluate.tables import Scores, scores_of
from rtdmd.evaluate.world_figures import Reading, reading
from rtdmd.images import Pixels, to_uint8
from rtdmd.rewards import Reward, check_rewards, identities, load_reward
from rtdmd.rewards.clipscore import ClipScore
from rtdmd.rewards.clipscore import load as load_clip
from rtdmd.world.verifier import Parse, Verdict, verify

Batch = tuple[Sequence[Item], Tensor]  # items and their images (B, 3, H, W) in [0, 1]
ImageKey = tuple[int, int]  # (prompt id, image index)


@dataclass(frozen=True)
class Judge:
    """The scorers of an evaluation, loaded once."""

    rewards: tuple[Reward, ...]
    clip: ClipScore | None  # whose image embedding is the feature space
    world: bool  # read the images with the world's verifier

    def identities(self) -> dict[str, dict[str, Any]]:
        """What every scorer was, and the model whose embedding is the feature space as "features"."""
        features = {} if self.clip is None else {"features": identities([self.clip])[self.clip.name]}
        return identities(self.rewards) | features


@dataclass(frozen=True)
class Judged:
    """What was found on N images in the plan's order."""

    items: tuple[Item, ...]
    scores: Scores
    features: np.ndarray | None  # (N, D) unit vectors
    reading: Reading | None
    kept: dict[ImageKey, Pixels]  # (H, W, 3) bytes

    @property
    def prompt_ids(self) -> list[int]:
        """The prompt of each image."""
        return [item.prompt.id for item in self.items]


def load_judge(params: EvaluateParams, device: torch.device, root: Path) -> Judge:
    """The scorers that `evaluate` names; the verifier's verdict is read where world_verifier is among them."""
    rewards = tuple(load_reward(spec, device, root) for spec in params.rewards)
    check_rewards(rewards, root)
    clip = None
    if params.features_model is not None:
        spec = RewardParams(name="clipscore", model=str((root / params.features_model).absolute()))
        clip = load_clip(spec, device)
    return Judge(rewards, clip, any(reward.name == "world_verifier" for reward in rewards))


@torch.no_grad()
def image_features(clip: ClipScore, images: Tensor) -> np.ndarray:
    """Unit image embeddings (B, D) float64 of images (B, 3, H, W) in [0, 1]."""
    pixels = clip.transform(images.to(clip.device, torch.float32))
    embedded = clip.model.get_image_features(pixel_values=pixels).pooler_output
    return F.normalize(embedded, dim=-1).cpu().double().numpy()


def judge_images(judge: Judge, batches: Iterable[Batch], keep: Collection[ImageKey] = ()) -> Judged:
    """Judge a stream of batches; images named in `keep` are kept as bytes."""
    items: list[Item] = []
    columns: dict[str, list[np.ndarray]] = {}
    features: list[np.ndarray] = []
    parses: list[Parse] = []
    kept: dict[ImageKey, Pixels] = {}
    for chunk, images in batches:
        items += chunk
        verdict = verify(images, [item.prompt.metadata for item in chunk]) if judge.world else None
        for name, values in _scores(judge, chunk, images, verdict).items():
            columns.setdefault(name, []).append(values)
        if verdict is not None:
            parses.append(verdict.parse)
        if judge.clip is not None:
            features.append(image_features(judge.clip, images))
        wanted = [row for row, item in enumerate(chunk) if item.key in keep]
        if wanted:
            kept |= dict(zip([chunk[row].key for row in wanted], to_uint8(images[wanted]), strict=True))
    return Judged(
        items=tuple(items),
        scores=scores_of(items, {name: np.concatenate(parts) for name, parts in columns.items()}),
        features=np.concatenate(features) if features else None,
        reading=reading(parses) if parses else None,
        kept=kept,
    )


def _scores(judge: Judge, chunk: Sequence[Item], images: Tensor, verdict: Verdict | None) -> dict[str, np.ndarray]:
    """Every score of one batch by name, (B,) each: the verdict's first, then the rewards."""
    prompts = [item.prompt.prompt for item in chunk]
    metadata = [item.prompt.metadata for item in chunk]
    found: dict[str, Tensor] = {}
    if verdict is not None:
        found = {"strict": verdict.strict, "lenient": verdict.lenient, "soft": verdict.soft}
    with torch.no_grad():
        found |= {reward.name: reward.score(images, prompts, metadata) for reward in judge.rewards}
    return {name: values.cpu().double().numpy() for name, values in found.items()}
