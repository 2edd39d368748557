"""pickscore on a tiny random CLIPModel in PickScore_v1's layout: exp(logit_scale) cosine / 26."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, save_tensors
from rtdmd.config import reward_params
from rtdmd.rehearse.reward_models.clip import write_pickscore
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import load_reward
from tests.rewards.reward_checks import MEAN, NONE, PROMPTS, STD, check_scorer, pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pickscore(tmp_path_factory.mktemp("models") / "pick")


@pytest.fixture(scope="module")
def reward(folder: Path) -> Reward:
    return load_reward(reward_params(name="pickscore", model=str(folder)))


def test_equals_a_plain_evaluation(reward: Reward, folder: Path) -> None:
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = CLIPTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=(pictures() - MEAN) / STD, **tokens).logits_per_image.diagonal()
    scores = reward.score(pictures(), PROMPTS, NONE)
    assert (scores - logits / 26).abs().max() < 3e-6
    assert reward.range[0] <= scores.min() and scores.max() <= reward.range[1]


def test_gradients_batches_and_identity(reward: Reward) -> None:
    check_scorer(reward, "model.safetensors", tolerance=4e-6)


def test_a_bin_file_and_a_separate_processor_give_the_same(folder: Path, reward: Reward, tmp_path: Path) -> None:
    tensors, _ = load_tensors(folder / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickscore: model: .* has no tokenizer\.json"):
        load_reward(reward_params(name="pickscore", model=str(tmp_path)))
    other = load_reward(reward_params(name="pickscore", model=str(tmp_path), base=str(folder)))
    difference = other.score(pictures(), PROMPTS, NONE) - reward.score(pictures(), PROMPTS, NONE)
    assert difference.abs().max() < 4e-6  # the same numbers elsewhere in memory: kernels round by alignment
    assert {"pytorch_model.bin", "base/tokenizer.json"} <= set(other.identity()["files"])


@pytest.mark.parametrize(("change", "message"), [("more", "unexpected: extra"), ("less", r"missing: visual_proj.*")])
def test_every_key_is_consumed(folder: Path, tmp_path: Path, change: str, message: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tensors, _ = load_tensors(copy / "model.safetensors")
    if change == "more":
        tensors["extra"] = torch.ones(1)
    else:
        del tensors["visual_projection.weight"]
    save_tensors(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"pickscore: model: .*: the weights are not this model's; {message}"):
        load_reward(reward_params(name="pickscore", model=str(copy)))
