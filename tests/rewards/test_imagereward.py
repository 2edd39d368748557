"""imagereward on a tiny model in the published layout: as the published package, as plain algebra, differentiable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import sha256_file
from rtdmd.config import RewardParams, reward_params
from rtdmd.rehearse.reward_models.imagereward import (
    LAYERS,
    PATCH,
    SIDE,
    TEXT,
    published_weights,
    write_bert,
    write_imagereward,
)
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import load_reward
from rtdmd.rewards.scorers.imagereward import ImageReward
from tests.rewards.reward_checks import waves

PROMPTS = ["a photo of red circles", "red", "photo, " * 50]
NONE = [None] * 3
Weights = dict[str, Tensor]


def pictures(size: int = SIDE) -> Tensor:
    return torch.stack([waves(size, size, shift) for shift in range(3)])


def params(folder: Path) -> RewardParams:
    return reward_params(name="imagereward", model=str(folder / "model"), base=str(folder / "base"))


def written(folder: Path) -> Path:
    """Folders `model` and `base`."""
    write_imagereward(folder / "model")
    write_bert(folder / "base")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("imagereward"))


@pytest.fixture(scope="module")
def reward(folder: Path) -> Reward:
    return load_reward(params(folder))


# --- the same network once more, in plain algebra on the published names ---


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, keep: Tensor | None = None) -> Tensor:
    """One text or image at a time: (L, D), (M, D), (M, D), and which of the M may be looked at."""
    q, k, v = (x.view(len(x), heads, -1).transpose(0, 1) for x in (query, key, value))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if keep is not None:
        logits = logits.masked_fill(~keep, -torch.inf)
    return (logits.softmax(-1) @ v).transpose(0, 1).reshape(query.shape)


def plain_vision(w: Weights, pixels: Tensor) -> Tensor:
    eye = "blip.visual_encoder"
    kernel = w[f"{eye}.patch_embed.proj.weight"]
    patches = F.conv2d(pixels[None], kernel, w[f"{eye}.patch_embed.proj.bias"], stride=PATCH)[0]
    x = torch.cat([w[f"{eye}.cls_token"][0], patches.flatten(1).T]) + w[f"{eye}.pos_embed"][0]
    for i in range(LAYERS):
        block = f"{eye}.blocks.{i}"
        q, k, v = linear(w, f"{block}.attn.qkv", norm(w, f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"{block}.attn.proj", attend(q, k, v, heads=16))
        inner = F.gelu(linear(w, f"{block}.mlp.fc1", norm(w, f"{block}.norm2", x, 1e-6)))
        x = x + linear(w, f"{block}.mlp.fc2", inner)
    return norm(w, f"{eye}.norm", x, 1e-6)


def plain_text(w: Weights, ids: Tensor, keep: Tensor, seen: Tensor) -> Tensor:
    name = "blip.text_encoder"
    x = w[f"{name}.embeddings.word_embeddings.weight"][ids]
    x = x + w[f"{name}.embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(w, f"{name}.embeddings.LayerNorm", x, 1e-12)
    for i in range(LAYERS):
        layer = f"{name}.encoder.layer.{i}"
        for kind, source, visible in (("attention", None, keep), ("crossattention", seen, None)):
            part = f"{layer}.{kind}"
            other = x if source is None else source
            q, k, v = (linear(w, f"{part}.self.{n}", y) for n, y in (("query", x), ("key", other), ("value", other)))
            mixed = linear(w, f"{part}.output.dense", attend(q, k, v, 4, visible))
            x = norm(w, f"{part}.output.LayerNorm", x + mixed, 1e-12)
        inner = linear(w, f"{layer}.output.dense", F.gelu(linear(w, f"{layer}.intermediate.dense", x)))
        x = norm(w, f"{layer}.output.LayerNorm", x + inner, 1e-12)
    return x


def plain_score(w: Weights, pixels: Tensor, ids: list[int]) -> float:
    tokens = torch.tensor(ids + [0] * (35 - len(ids)))
    x = plain_text(w, tokens, torch.arange(35) < len(ids), plain_vision(w, pixels))[0]
    for i in (0, 2, 4, 6, 7):
        x = linear(w, f"mlp.layers.{i}", x)
    return (x.item() - 0.16717362830052426) / 1.0333394966054072


# --- what it computes ---


def test_equals_the_published_package(reward: Reward) -> None:
    """Recorded from image-reward 1.5 (transformers 4.30, timm 0.6.13) with these very weights and 8-bit pictures."""
    published = {
        ("a photo of red circles", 0): -3.3047475814819336,
        ("a photo of red circles", 1): -1.948778748512268,
        ("red", 0): -3.0321359634399414,
    }
    for (prompt, shift), expected in published.items():
        score = reward.score(waves(SIDE, SIDE, shift)[None], [prompt], [None]).item()
        assert score == pytest.approx(expected, abs=1e-5)
    cropped = reward.score(waves(32, 43)[None], ["photo, " * 50], [None]).item()
    assert cropped == pytest.approx(-2.05662202835083, abs=1e-5)  # 11 columns too many, 51 tokens too many
    resized = reward.score(waves(64, 83)[None], ["a [ENC] Red. circle é"], [None]).item()
    assert resized == pytest.approx(-2.639817476272583, abs=0.02)  # resized in 8 bits there, in floats here


def test_equals_plain_algebra_on_the_published_names(reward: Reward) -> None:
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    vocabulary = reward.tokenizer.get_vocab()  # type: ignore[attr-defined]
    words = [["a", "photo", "of", "red", "circle", "##s"], ["red"], ["photo", ","] * 16 + ["photo"]]
    ids = [[vocabulary[word] for word in ("[CLS]", *text, "[SEP]")] for text in words]
    assert len(ids[2]) == 35  # cut, with [SEP] kept
    weights = published_weights()
    expected = [plain_score(weights, (p - mean) / std, i) for p, i in zip(pictures(), ids, strict=True)]
    scores = reward.score(pictures(), PROMPTS, NONE)
    assert scores.shape == (3,) and scores.dtype == torch.float32
    assert (scores - torch.tensor(expected)).abs().max() < 1e-5
    assert scores.max() - scores.min() > 0.5


def test_a_batch_is_its_images_one_by_one(reward: Reward) -> None:
    together = reward.score(pictures(), PROMPTS, NONE)
    alone = torch.cat([reward.score(pictures()[i : i + 1], PROMPTS[i : i + 1], [None]) for i in range(3)])
    assert (together - alone).abs().max() < 1e-5  # float32's 1.2e-7 of 3.3, through some twenty sums


@pytest.mark.parametrize("size", [SIDE, 50])
def test_the_gradient_reaches_the_images_and_equals_finite_differences(reward: Reward, size: int) -> None:
    images = (0.2 + 0.6 * pictures(size)).requires_grad_()
    (gradient,) = torch.autograd.grad(reward.score(images, PROMPTS, NONE).sum(), images)
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    step = 1e-3
    with torch.no_grad():
        up, down = (reward.score(images + s * step * direction, PROMPTS, NONE).sum() for s in (1, -1))
    assert (gradient * direction).sum().item() == pytest.approx((up - down).item() / (2 * step), rel=0.01)
    assert all(gradient[i].abs().max() > 0 for i in range(3))


def test_the_crop_rounds_half_pixels_as_torchvision_does(reward: ImageReward) -> None:
    crop = replace(reward.transform, size=None, crop=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)
    rows = torch.arange(11.0).view(1, 1, 11, 1).expand(1, 3, 11, 4)
    assert crop(rows)[0, 0, :, 0].tolist() == [4, 5, 6, 7]  # 3.5 -> 4
    assert crop(rows[:, :, :9])[0, 0, :, 0].tolist() == [2, 3, 4, 5]  # 2.5 -> 2


# --- what it refuses ---


def rewrite(folder: Path, change: dict[str, Tensor | None]) -> Path:
    """The folder's weights with some tensors replaced, or removed where None."""
    tensors: dict[str, Tensor | None] = dict(published_weights()) | change
    torch.save({name: t for name, t in tensors.items() if t is not None}, folder / "model" / "ImageReward.pt")
    return folder


def test_every_key_is_consumed(tmp_path: Path) -> None:
    folder = written(tmp_path / "x")
    gone = "blip.text_encoder.encoder.layer.1.crossattention.self.key.bias"
    with pytest.raises(UserError, match=r"missing: text\.encoder\.layer\.1\.crossattention\.self\.key\.bias"):
        load_reward(params(rewrite(folder, {gone: None})))
    with pytest.raises(UserError, match=r"unexpected: blip\.visual_encoder_m\.cls_token"):
        load_reward(params(rewrite(folder, {"blip.visual_encoder_m.cls_token": torch.zeros(1)})))
    with pytest.raises(UserError, match=r"of another shape: head\.6\.bias"):
        load_reward(params(rewrite(folder, {"mlp.layers.6.bias": torch.zeros(3)})))
    with pytest.raises(UserError, match=r"lack vision\.embeddings\.position_embedding"):
        load_reward(params(rewrite(folder, {"blip.visual_encoder.pos_embed": None})))
    unused = {"blip.vision_proj.weight": None, "blip.text_encoder.embeddings.position_ids": None}
    assert load_reward(params(rewrite(folder, unused))).name == "imagereward"


def test_each_tensor_of_the_score_changes_it(folder: Path, reward: Reward) -> None:
    """Nothing is loaded into the void: doubling any tensor moves the score (a key's bias cannot, softmax drops it)."""
    model = reward.model  # type: ignore[attr-defined]
    before = reward.score(pictures()[:1], PROMPTS[:1], [None]).item()
    still = []
    for name, parameter in model.named_parameters():
        original = parameter.clone()
        with torch.no_grad():
            parameter.mul_(2)
            after = reward.score(pictures()[:1], PROMPTS[:1], [None]).item()
            parameter.copy_(original)
        if abs(after - before) < 1e-5:
            still.append(name)
    assert all(name.endswith("self.key.bias") for name in still)


def test_other_files_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "x")
    (folder / "base" / "tokenizer.json").unlink()
    (folder / "base" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\n")
    with pytest.raises(UserError, match=r"base: .* makes 8 tokens where the model has 69; .*bert-base-uncased"):
        load_reward(params(folder))
    config = json.loads((folder / "model" / "med_config.json").read_text())
    del config["num_hidden_layers"]
    (folder / "model" / "med_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"med_config\.json lacks num_hidden_layers"):
        load_reward(params(folder))
    (folder / "model" / "med_config.json").unlink()
    with pytest.raises(UserError, match=r"imagereward: model: .* has no med_config\.json"):
        load_reward(params(folder))


def test_a_broken_image_is_an_error_and_never_a_score(reward: Reward) -> None:
    broken = pictures()
    broken[1, 0, 0, 0] = float("nan")
    with pytest.raises(RtdmdError, match="not finite, at image 1"):
        reward.score(broken, PROMPTS, NONE)
    with pytest.raises(ValueError, match="2 prompts"):
        reward.score(pictures(), PROMPTS[:2], NONE)


def test_weights_are_frozen_and_identified(reward: Reward, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    identity = load_reward(params(folder)).identity()
    assert capfd.readouterr() == ("", "")
    assert identity["files"] == {
        "ImageReward.pt": sha256_file(folder / "model" / "ImageReward.pt"),
        "med_config.json": sha256_file(folder / "model" / "med_config.json"),
        "tokenizer.json": sha256_file(folder / "base" / "tokenizer.json"),
    }
    assert (identity["name"], identity["template"], identity["version"]) == ("imagereward", "{prompt}", 1)
    assert json.loads(json.dumps(identity)) == identity
    assert not any(p.requires_grad for p in reward.model.parameters())  # type: ignore[attr-defined]
    assert reward.model.text.config.hidden_size == TEXT  # type: ignore[attr-defined]
