"""clipscore on a tiny random CLIPModel: equal to a plain evaluation of the same weights, differentiable, per-image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPTokenizer

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import load_tensors, save_tensors, sha256_file
from rtdmd.config import reward_params
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import load_reward
from tests.rewards.reward_checks import check_scorer
from tests.tiny import make_tiny_clip

PROMPTS = ["a photo of a red circle", "a photo of two squares", "a photo of a red circle"]
NONE = [None] * 3


def pictures(size: int = 36) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def reward(tiny_clip: Path) -> Reward:
    return load_reward(reward_params(name="clipscore", model=str(tiny_clip)))


def test_equals_a_plain_evaluation_of_the_model(reward: Reward, tiny_clip: Path) -> None:
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    tokens = CLIPTokenizer.from_pretrained(tiny_clip)(PROMPTS, padding=True, return_tensors="pt")
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    with torch.no_grad():
        out = model(pixel_values=(pictures() - mean) / std, **tokens)
    expected = F.cosine_similarity(out.image_embeds, out.text_embeds)
    scores = reward.score(pictures(), PROMPTS, NONE)
    assert scores.shape == (3,) and scores.dtype == torch.float32
    assert (scores - expected).abs().max() < 1e-6
    assert (scores - out.logits_per_image.diagonal() / model.logit_scale.exp()).abs().max() < 1e-6
    assert scores.unique().numel() == 3
    assert reward.range[0] <= scores.min() and scores.max() <= reward.range[1]


def test_the_text_side_does_not_depend_on_history(tiny_clip: Path, reward: Reward) -> None:
    fresh = load_reward(reward_params(name="clipscore", model=str(tiny_clip)))
    last = fresh.score(pictures()[2:], PROMPTS[2:], [None])
    reward.score(pictures(), PROMPTS, NONE)
    assert torch.equal(last, reward.score(pictures()[2:], PROMPTS[2:], [None]))


def test_gradients_batches_and_identity(reward: Reward) -> None:
    check_scorer(reward, "model.safetensors")


def test_weights_are_frozen_and_identified(reward: Reward, tiny_clip: Path) -> None:
    identity = reward.identity()
    assert identity["files"]["model.safetensors"] == sha256_file(tiny_clip / "model.safetensors")
    assert {"config.json", "tokenizer.json", "preprocessor_config.json"} <= set(identity["files"])
    assert (identity["name"], identity["template"], identity["version"]) == ("clipscore", "{prompt}", 1)
    assert json.loads(json.dumps(identity)) == identity
    assert not any(p.requires_grad for p in reward.model.parameters())  # type: ignore[attr-defined]


def test_other_weights_have_another_identity(tmp_path: Path, reward: Reward) -> None:
    other = load_reward(reward_params(name="clipscore", model=str(make_tiny_clip(tmp_path / "other", seed=1))))
    assert other.identity()["files"]["model.safetensors"] != reward.identity()["files"]["model.safetensors"]
    assert other.identity()["files"]["config.json"] == reward.identity()["files"]["config.json"]


def test_faults_are_errors_and_never_scores(reward: Reward, tmp_path: Path, tiny_clip: Path) -> None:
    with pytest.raises(UserError, match=r"clipscore: model: nowhere is not a CLIP model folder; fetch one"):
        load_reward(reward_params(name="clipscore", model="nowhere"))
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "siglip"))
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(UserError, match="holds a 'siglip' model"):
        load_reward(reward_params(name="clipscore", model=str(folder)))
    with pytest.raises(ValueError, match="2 prompts"):
        reward.score(pictures(), PROMPTS[:2], NONE)
    broken = pictures()
    broken[1, 0, 0, 0] = float("nan")
    with pytest.raises(RtdmdError, match="not finite, at image 1"):
        reward.score(broken, PROMPTS, NONE)


def test_every_key_is_consumed(tmp_path: Path, tiny_clip: Path) -> None:
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    tensors, _ = load_tensors(folder / "model.safetensors")
    save_tensors({**tensors, "extra": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"clipscore: model: .*: the weights are not this model's; unexpected: extra"):
        load_reward(reward_params(name="clipscore", model=str(folder)))


def test_loading_prints_nothing(tiny_clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_reward(reward_params(name="clipscore", model=str(tiny_clip)))
    assert capfd.readouterr() == ("", "")
