"""The image processor against torch's own resize and transformers' CLIP processor, with gradients and on bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rtdmd.common.errors import UserError
from rtdmd.rewards.preprocessing import ImageTransform, Letterbox, bilinear, cut_overshoot, resize

KEY = "rewards: clipscore: model"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def smooth_images(height: int, width: int) -> torch.Tensor:
    """Two images of low frequencies in [0.1, 0.9], so that resizing overshoots nowhere."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 4, width), indexing="ij")
    waves = torch.stack([torch.stack([(x * (1 + c) + b * y).sin() for c in range(3)]) for b in (1, 2)])
    return 0.5 + 0.4 * waves


def transform(
    size: int | tuple[int, int] | None, crop: tuple[int, int] | None, mode: str = "bicubic"
) -> ImageTransform:
    return ImageTransform(size, crop, MEAN, STD, mode)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [((512, 512), (224, 224)), ((36, 48), (224, 298)), ((37, 36), (20, 50))])
def test_resize_equals_torchs_antialiased_interpolation(
    sizes: tuple[tuple[int, int], tuple[int, int]], mode: str
) -> None:
    images = torch.rand(2, 3, *sizes[0], generator=torch.Generator().manual_seed(0))
    theirs = F.interpolate(images, size=sizes[1], mode=mode, antialias=True)
    assert (resize(images, *sizes[1], mode) - theirs).abs().max() < 2e-6


@pytest.mark.parametrize(("height", "width"), [(512, 512), (300, 451), (1024, 768)])
def test_equals_the_clip_processor_up_to_its_8_bit_rounding(height: int, width: int) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = (smooth_images(height, width) * 255).round() / 255
    pictures = [Image.fromarray((image.permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)) for image in images]
    theirs = CLIPImageProcessorPil()(pictures, return_tensors="pt")["pixel_values"]
    ours = transform(224, (224, 224))(images)
    assert ours.shape == theirs.shape == (2, 3, 224, 224)
    difference = (ours - theirs).abs() * torch.tensor(STD).view(3, 1, 1) * 255  # in 8-bit levels
    assert difference.max() < 1.2  # PIL rounds after each direction: 0.5, and 0.5 times the absolute weights
    assert difference.mean() < 0.4


@pytest.mark.parametrize(("height", "width"), [(512, 512), (300, 451), (1024, 768), (36, 36)])
def test_bytes_equal_the_clip_processor(height: int, width: int) -> None:
    """White noise: every rounding on the way is theirs."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    theirs = CLIPImageProcessorPil()(pictures, return_tensors="pt")["pixel_values"]
    ours = transform(224, (224, 224))(images)
    assert ours.dtype == torch.float32 and (ours - theirs).abs().max() < 1e-6


def test_bilinear_is_what_torchvision_does_with_floats() -> None:
    """Sides 300 and 451 become 224 and 336; half a pixel of the crop's rest (56) is none here, of 337 it is."""
    change = bilinear(transform(224, (224, 224)))
    images = torch.randint(0, 256, (1, 3, 300, 452), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(images / 255, size=(224, 337), mode="bilinear", antialias=True)
    expected = resized[..., 56:280]  # 56.5 goes to the even one
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    for given in (images, images / 255):
        assert (change(given) - (expected - mean) / std).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [((512, 512), (224, 224)), ((1024, 768), (298, 224)), ((36, 36), (224, 224))])
def test_resize_equals_pils_own_on_floats(sizes: tuple[tuple[int, int], tuple[int, int]], mode: str) -> None:
    """PIL is what the published processors resize with; on its float pictures it rounds nothing."""
    image = torch.rand(sizes[0], generator=torch.Generator().manual_seed(0))
    code = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[mode]
    theirs = np.asarray(Image.fromarray(image.numpy()).resize(sizes[1][::-1], code))
    ours = resize(image[None, None].expand(1, 3, -1, -1), *sizes[1], mode)[0, 0]
    assert np.abs(ours.numpy() - theirs).max() < 2e-5  # torch places the taps in float32: 1024 * 2^-24 of a pixel


@pytest.mark.parametrize(("height", "width", "inner"), [(60, 40, (36, 24)), (30, 77, (14, 36)), (18, 18, (36, 36))])
def test_a_letterbox_keeps_the_whole_picture_on_black(height: int, width: int, inner: tuple[int, int]) -> None:
    images = smooth_images(height, width)
    pixels = Letterbox(36, (0.0,) * 3, (1.0,) * 3)(images)
    assert pixels.shape == (2, 3, 36, 36)
    top, left = (36 - inner[0]) // 2, (36 - inner[1]) // 2
    middle = pixels[..., top : top + inner[0], left : left + inner[1]]
    assert torch.equal(middle, resize(images, *inner))
    assert pixels.abs().sum().item() == pytest.approx(middle.abs().sum().item(), rel=1e-6)
    read = (images * 255).round().byte()
    assert torch.equal(Letterbox(36, MEAN, STD)(read), Letterbox(36, MEAN, STD)(read / 255))  # resized as floats
    normal = Letterbox(36, MEAN, STD)(images)
    assert torch.equal(normal, (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))


def test_the_same_size_is_not_touched_but_normalised() -> None:
    images = smooth_images(36, 36)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(transform(36, (36, 36))(images), (images - mean) / std)


def test_overshoot_is_cut_as_8_bit_images_cut_it() -> None:
    edge = torch.zeros(1, 3, 36, 36)
    edge[..., 18:] = 1
    assert resize(edge, 224, 224).max() > 1.01
    pixels = ImageTransform(224, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic")(edge)
    assert pixels.min() == 0 and pixels.max() == 1


def test_white_pixels_keep_their_gradient() -> None:
    """A third of them exceed 1 by rounding. Compared with the gradient of the resize alone, which is linear."""
    white = torch.ones(1, 3, 512, 512, requires_grad=True)
    weights = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    resized = resize(white, 224, 224)
    assert (resized > 1).float().mean() > 0.3 and resized.max() < 1 + 1e-6
    (true,) = torch.autograd.grad((resized * weights).sum(), white)
    cut = ImageTransform(224, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic")(white)
    (found,) = torch.autograd.grad((cut * weights).sum(), white)
    assert cut.max() == 1 and torch.equal(found, true)


def test_true_overshoot_has_no_gradient() -> None:
    edge = torch.tensor([-0.1, -1e-4, -1e-7, 0.0, 0.5, 1.0, 1 + 2e-7, 1.001, 1.2], requires_grad=True)
    cut = cut_overshoot(edge)
    assert torch.equal(cut, edge.detach().clamp(0, 1))
    (gradient,) = torch.autograd.grad(cut.sum(), edge)
    assert gradient.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_gradients_equal_finite_differences() -> None:
    images = smooth_images(9, 11).double().requires_grad_()
    change = transform(6, (6, 6))
    assert torch.autograd.gradcheck(lambda x: change(x).square().sum(), images, eps=1e-5, atol=1e-4)


def test_configs_in_every_spelling_are_read(tmp_path: Path) -> None:
    common = {"do_resize": True, "do_center_crop": True, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
    spellings = [
        ({"size": 36, "crop_size": 36, "resample": 3}, transform(36, (36, 36))),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 36, "width": 30}}, transform(40, (36, 30))),
        (
            {"size": {"height": 20, "width": 30}, "crop_size": 20, "resample": 2},
            transform((20, 30), (20, 20), "bilinear"),
        ),
        ({"size": 36, "crop_size": 36, "do_resize": False, "do_center_crop": False}, transform(None, None)),
    ]
    for config, expected in spellings:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(common | config))
        assert ImageTransform.from_folder(tmp_path, KEY) == expected
    (tmp_path / "preprocessor_config.json").unlink()
    nested = {"image_processor": common | spellings[0][0]}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert ImageTransform.from_folder(tmp_path, KEY) == transform(36, (36, 36))


def test_what_cannot_be_followed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clipscore: model: .* has no preprocessor_config\.json"):
        ImageTransform.from_folder(tmp_path, KEY)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 1}))
    with pytest.raises(UserError, match=r"clipscore: model: .*\.json: resample 1 is not supported"):
        ImageTransform.from_folder(tmp_path, KEY)
    for broken, says in ({"do_resize": True}, "do_center_crop"), ({"do_center_crop": True, "crop_size": {}}, "height"):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=rf"clipscore: model: .* makes no image processor .*{says}.*copy or down"):
            ImageTransform.from_folder(tmp_path, KEY)
    with pytest.raises(ValueError, match="cannot crop"):
        transform(None, (64, 64))(torch.zeros(1, 3, 36, 36))
