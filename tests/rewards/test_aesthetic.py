"""aesthetic: a predictor file in the published layout on a tiny CLIP, against its layers one after the other."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPModel

from rtdmd.config import RewardParams
from rtdmd.errors import UserError
from rtdmd.rewards import Reward, load_reward
from tests.rewards.reward_checks import (
    MEAN,
    NONE,
    PROMPTS,
    STD,
    check_gradient,
    check_identity,
    check_one_by_one,
    pictures,
)

NAME = "sac+logos+ava1-l14-linearMSE.pth"


class Published(nn.Module):
    """Dropout sits between the linear layers, so their numbers are 0, 2, 4, 6, 7."""

    def __init__(self, width: int):
        super().__init__()
        sizes = [width, 12, 8, 6, 4, 1]
        linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        drop = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
        self.layers = nn.Sequential(linear[0], drop[0], linear[1], drop[1], linear[2], drop[2], linear[3], linear[4])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def original() -> Published:
    torch.manual_seed(3)
    return Published(8).eval()


@pytest.fixture(scope="module")
def reward(original: Published, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Reward:
    folder = tmp_path_factory.mktemp("laion")
    torch.save(original.state_dict(), folder / NAME)
    return load_reward(RewardParams(name="aesthetic", model=str(folder), base=str(tiny_clip)))


def test_equals_the_layers_on_the_normalised_embedding(reward: Reward, original: Published, tiny_clip: Path) -> None:
    clip = CLIPModel.from_pretrained(tiny_clip).eval()
    with torch.no_grad():
        vision = clip.vision_model((pictures() - MEAN) / STD).pooler_output
        embedded = clip.visual_projection(vision)
        expected = original(embedded / embedded.norm(dim=1, keepdim=True))[:, 0]
    scores = reward.score(pictures(), PROMPTS, NONE)
    assert (scores - expected).abs().max() < 1e-6
    assert torch.equal(scores, reward.score(pictures(), ["", "x", "y"], NONE))  # the prompt is not read


def test_gradients_batches_and_identity(reward: Reward) -> None:
    check_gradient(reward, 36)
    check_gradient(reward, 50)
    check_one_by_one(reward)
    check_identity(reward, NAME)
    assert "base/model.safetensors" in reward.identity()["files"]
    assert reward.identity()["template"] is None


def test_other_layouts_and_widths_are_errors(original: Published, tiny_clip: Path, tmp_path: Path) -> None:
    good = original.state_dict()
    for bad, message in (
        ({**good, "layers.9.weight": torch.ones(1)}, r"unexpected: layers\.9\.weight"),
        ({k: v for k, v in good.items() if k != "layers.7.bias"}, r"missing: layers\.7\.bias"),
        (Published(5).state_dict(), r"predicts from 5 numbers, but .* embeds images in 8"),
    ):
        torch.save(bad, tmp_path / NAME)
        with pytest.raises(UserError, match=f"aesthetic: model: .*{message}"):
            load_reward(RewardParams(name="aesthetic", model=str(tmp_path), base=str(tiny_clip)))
    (tmp_path / NAME).unlink()
    with pytest.raises(UserError, match=r"aesthetic: model: .* has no sac\+logos"):
        load_reward(RewardParams(name="aesthetic", model=str(tmp_path), base=str(tiny_clip)))
