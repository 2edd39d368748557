"""Scorers as the public code uses them, each against a restatement of that use: what is read, how it is resized."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from rtdmd.config import reward_params
from rtdmd.rehearse.reward_models.clip import write_pickscore
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import REWARDS, load_reward
from tests.rewards.reward_checks import MEAN, NONE, PROMPTS, STD, as_pil, pictures
from tests.rewards.tiny_scorers import entry

DIFFERENTIABLE = [name for name, reward in REWARDS.items() if "pixels" in reward.settings.model_fields]
SIDES = (50, 61)
SIDE = 36  # of the tiny CLIP


def torchvisions(images: Tensor) -> Tensor:
    """torchvision's Resize(36) and CenterCrop(36) of floats: bilinear with antialiasing, the odd rest to the even."""
    height, width = images.shape[-2:]
    short = min(height, width)
    size = (int(SIDE * height / short), int(SIDE * width / short))
    resized = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (round((side - SIDE) / 2) for side in size)
    return (resized[..., top : top + SIDE, left : left + SIDE] - MEAN) / STD


def as_png(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


def cosines(folder: Path, pixels: Tensor) -> Tensor:
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = CLIPTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    return model(pixel_values=pixels, **tokens).logits_per_image.diagonal() / model.logit_scale.exp().detach()


def scored(reward: Reward, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores without a gradient, scores with one, and the gradient."""
    with torch.no_grad():
        alone = reward.score(images, PROMPTS, NONE)
    images = images.clone().requires_grad_()
    scores = reward.score(images, PROMPTS, NONE)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    return alone, scores.detach(), gradient


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_bytes_are_read_where_no_gradient_is_asked_for(name: str, tmp_path: Path) -> None:
    """What is rounded to bytes alone counts there; back-propagation reads the decoded floats, as ever."""
    params = entry(name, tmp_path)
    floats, read = load_reward(params), load_reward(params.model_copy(update={"pixels": "bytes"}))
    images = pictures(*SIDES)
    alone, scores, gradient = scored(read, images)
    assert torch.equal(alone, scored(read, as_png(images))[0])
    expected, with_gradient, same = scored(floats, images)
    assert 1e-7 < (alone - expected).abs().max() < 0.1
    assert torch.equal(scores, with_gradient) and torch.equal(gradient, same)
    assert (read.identity()["pixels"], floats.identity()["pixels"]) == ("bytes", "floats")


def test_clipscore(tiny_clip: Path) -> None:
    """Bytes over 255, torchvision's resize of floats; the gradient through the same resize."""
    reward = load_reward(reward_params(name="clipscore", model=str(tiny_clip), resize="bilinear", pixels="bytes"))
    images = pictures(*SIDES).requires_grad_()
    alone, scores, gradient = scored(reward, images.detach())
    assert (alone - cosines(tiny_clip, torchvisions(as_png(images.detach())))).abs().max() < 1e-6
    theirs = cosines(tiny_clip, torchvisions(images))
    (expected,) = torch.autograd.grad(theirs.sum(), images)
    assert (scores - theirs).abs().max() < 1e-6
    assert (gradient - expected).norm() < 1e-5 * expected.norm()
    ours = load_reward(reward_params(name="clipscore", model=str(tiny_clip)))
    assert (scored(ours, images.detach())[2] - expected).norm() > 0.1 * expected.norm()
    assert (reward.identity()["resize"], ours.identity()["resize"]) == ("bilinear", "processor")


def test_pickscore(tmp_path: Path) -> None:
    """The policy's pictures by PIL and the processor, bit for bit; the back-propagated ones by torchvision's resize."""
    folder = write_pickscore(tmp_path / "pick")
    keys = {"backprop_resize": "bilinear", "pixels": "bytes"}
    reward = load_reward(reward_params(name="pickscore", model=str(folder), **keys))
    images = pictures(*SIDES).requires_grad_()
    alone, scores, gradient = scored(reward, images.detach())
    read = CLIPImageProcessorPil.from_pretrained(folder)(as_pil(images.detach()), return_tensors="pt")
    processed = read["pixel_values"]
    scale = torch.tensor(4.6052).exp() / 26
    assert (alone - scale * cosines(folder, processed)).abs().max() < 4e-6
    theirs = scale * cosines(folder, torchvisions(images))
    (expected,) = torch.autograd.grad(theirs.sum(), images)
    assert (scores - theirs).abs().max() < 4e-6
    assert (gradient - expected).norm() < 1e-5 * expected.norm()
    assert reward.identity()["backprop_resize"] == "bilinear"


def test_aesthetic_and_imagereward_resize_bytes(tmp_path: Path) -> None:
    """Both publish a pipeline on PIL's pictures: bytes in, bytes after the resize."""
    for name, side in (("aesthetic", SIDE), ("imagereward", 32)):
        params = entry(name, tmp_path / name).model_copy(update={"pixels": "bytes"})
        reward = load_reward(params)
        seen: list[Tensor] = []
        transform = reward.transform  # type: ignore[attr-defined]
        reward.transform = lambda images, f=transform, s=seen: s.append(f(images)) or s[-1]  # type: ignore[attr-defined]
        with torch.no_grad():
            reward.score(pictures(64, 96), PROMPTS, NONE)
        (picture, *_) = as_pil(pictures(64, 96))
        pixels = np.asarray(picture.resize((side * 96 // 64, side), Image.Resampling.BICUBIC))
        left = (pixels.shape[1] - side) // 2  # an even rest
        expected = torch.from_numpy(pixels[:, left : left + side].copy()).permute(2, 0, 1) / 255
        assert seen[0].shape[-2:] == (side, side)
        assert (seen[0][0] - (expected - MEAN) / STD).abs().max() < 1e-6


def test_variants_and_other_copies_of_the_weights_are_no_part_of_the_identity(tiny_clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    before = load_reward(reward_params(name="clipscore", model=str(folder))).identity()
    shutil.copy(folder / "model.safetensors", folder / "model.fp16.safetensors")
    (folder / "flax_model.msgpack").write_bytes(b"x")
    assert load_reward(reward_params(name="clipscore", model=str(folder))).identity() == before
