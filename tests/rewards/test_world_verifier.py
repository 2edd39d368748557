"""The verifier as a reward: real images score, other captions do not, and metadata is asked for."""

from __future__ import annotations

import pytest
import torch

from rtdmd.common.errors import UserError
from rtdmd.common.rng import numpy_generator
from rtdmd.config import reward_params
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import load_reward
from rtdmd.world.grammar import captions
from rtdmd.world.render import render, sample_scenes
from rtdmd.world.verifier import verify

CHOSEN = list(captions())[::17]


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.as_tensor(render(sample_scenes(CHOSEN, numpy_generator(0, "test"))))


def reward(soft_weight: float) -> Reward:
    return load_reward(reward_params(name="world_verifier", soft_weight=soft_weight))


def test_mixes_the_soft_and_the_strict_verdict(images: torch.Tensor) -> None:
    prompts = [caption.prompt for caption in CHOSEN]
    metadata = [caption.metadata() for caption in CHOSEN[1:] + CHOSEN[:1]]  # the next caption's: mostly wrong
    verdict = verify(images, metadata)
    scores = {w: reward(w).score(images, prompts, metadata) for w in (0.0, 0.7, 1.0)}
    assert torch.equal(scores[0.0], verdict.strict) and torch.equal(scores[1.0], verdict.soft)
    assert torch.allclose(scores[0.7], 0.7 * verdict.soft + 0.3 * verdict.strict)
    assert scores[0.7].dtype == torch.float32 and not scores[0.7].requires_grad


def test_real_images_of_a_caption_score_one_strictly(images: torch.Tensor) -> None:
    metadata = [caption.metadata() for caption in CHOSEN]
    scores = reward(0.0).score(images.requires_grad_(), [c.prompt for c in CHOSEN], metadata)
    assert scores.tolist() == [1.0] * len(CHOSEN)


def test_a_prompt_without_metadata_cannot_be_scored(images: torch.Tensor) -> None:
    metadata = [CHOSEN[0].metadata(), None]
    with pytest.raises(UserError, match=r"world_verifier needs metadata, but the prompt 'a dog' has none"):
        reward(0.7).score(images[:2], [CHOSEN[0].prompt, "a dog"], metadata)


def test_identity_holds_what_the_score_depends_on() -> None:
    assert reward(0.7).identity() != reward(0.5).identity()
    assert reward(0.7).identity() == reward(0.7).identity()
    assert reward(0.7).identity()["soft_weight"] == 0.7
