"""aesthetic: a predictor file in the published layout on a tiny CLIP, against its layers one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPModel

from rtdmd.common.errors import UserError
from rtdmd.config import reward_params
from rtdmd.rehearse.reward_models.aesthetic import LAION, Predictor, write_predictor
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import load_reward
from tests.rewards.reward_checks import MEAN, NONE, PROMPTS, STD, check_scorer, pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("laion")


@pytest.fixture(scope="module")
def original(folder: Path) -> Predictor:
    return write_predictor(folder, 8)


@pytest.fixture(scope="module")
def reward(original: Predictor, folder: Path, tiny_clip: Path) -> Reward:
    return load_reward(reward_params(name="aesthetic", model=str(folder), base=str(tiny_clip)))


def test_equals_the_layers_on_the_normalised_embedding(reward: Reward, original: Predictor, tiny_clip: Path) -> None:
    clip = CLIPModel.from_pretrained(tiny_clip).eval()
    with torch.no_grad():
        vision = clip.vision_model((pictures() - MEAN) / STD).pooler_output
        embedded = clip.visual_projection(vision)
        expected = original(embedded / embedded.norm(dim=1, keepdim=True))[:, 0]
    scores = reward.score(pictures(), PROMPTS, NONE)
    assert (scores - expected).abs().max() < 1e-6
    assert torch.equal(scores, reward.score(pictures(), ["", "x", "y"], NONE))  # the prompt is not read


def test_gradients_batches_and_identity(reward: Reward) -> None:
    check_scorer(reward, LAION)
    assert "base/model.safetensors" in reward.identity()["files"]
    assert reward.identity()["template"] is None


def test_other_layouts_and_widths_are_errors(original: Predictor, tiny_clip: Path, tmp_path: Path) -> None:
    good = original.state_dict()
    for bad, message in (
        ({**good, "layers.9.weight": torch.ones(1)}, r"unexpected: layers\.9\.weight"),
        ({k: v for k, v in good.items() if k != "layers.7.bias"}, r"missing: layers\.7\.bias"),
        (Predictor(5).state_dict(), r"predicts from 5 numbers, but .* embeds images in 8"),
    ):
        torch.save(bad, tmp_path / LAION)
        with pytest.raises(UserError, match=f"aesthetic: model: .*{message}"):
            load_reward(reward_params(name="aesthetic", model=str(tmp_path), base=str(tiny_clip)))
    (tmp_path / LAION).unlink()
    with pytest.raises(UserError, match=r"aesthetic: model: .* has no sac\+logos"):
        load_reward(reward_params(name="aesthetic", model=str(tmp_path), base=str(tiny_clip)))
