"""GenEval's object detector: Mask2Former with a Swin-S backbone, trained on COCO's instances, through transformers.

GenEval runs OpenMMLab's weights; ours are the authors' own of the same model, facebook/mask2former-swin-small-coco-
instance. Images are prepared and masks read out as OpenMMLab's test pipeline does, not as the Hub folder's
preprocessor_config.json says: that one shrinks every image to 384x384, where the model was trained and is tested at
a shorter side of 800, and it makes masks from 384x384 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.model_files import read_config
from rtdmd.common.pretrained import pretrained_exactly
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.rewards.geneval_rules import CLASSES, THRESHOLD, Found

with quiet_imports():
    from transformers import Mask2FormerForUniversalSegmentation

REPOSITORY = "facebook/mask2former-swin-small-coco-instance"
# pixels: sides after resizing, as far as both can be had (OpenMMLab's test pipeline)
SHORT = 800
LONG = 1333
MULTIPLE = 32  # sides are padded to it, below and on the right
PADDING = 128 / 255  # grey, before normalising (OpenMMLab 2.x's test pipeline of this model)
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_UNUSED = ("swin.layernorm.weight", "swin.layernorm.bias")  # of Swin alone; Mask2Former reads the stages before it
_CONSTANT = "relative_position_index"  # of the window size; older files carry it


@dataclass(frozen=True)
class Detections:
    """Objects of one image and their masks (n, H, W) bool; ``Found.index`` is a mask's number."""

    found: tuple[Found, ...]
    masks: Tensor


class Detector:
    """Finds the objects of CLASSES in one image at a time, so that what it finds does not depend on a batch."""

    def __init__(self, folder: Path, device: torch.device, short: int = SHORT, long: int = LONG):
        """folder: a Mask2Former folder. short, long: other sizes are for models trained at other sizes."""
        self.model = load_model(folder).to(device)
        self.device = device
        self.short = short
        self.long = long

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        self.model.to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Detections:
        """All objects whose confidence can be above THRESHOLD in an image (3, H, W) in [0, 1]."""
        pixels, inner = prepare(image.to(self.device, torch.float32), self.short, self.long)
        out = self.model(pixel_values=pixels[None])
        classes = out.class_queries_logits[0]
        masks = out.masks_queries_logits[0]
        return instances(classes, masks, pixels.shape[-2:], inner, image.shape[-2:])


def load_model(folder: Path) -> Any:
    """The folder's Mask2Former for COCO's 80 classes, frozen, in float32.

    UserError where it is missing, of another kind, has other classes, or where a key is missing or left over.
    """
    key = "rewards: geneval: model"
    _check_config(folder, key)
    return pretrained_exactly(
        Mask2FormerForUniversalSegmentation, folder, key, torch.float32, absent=_UNUSED, ignored=(_CONSTANT,)
    )


def _check_config(folder: Path, key: str) -> None:
    path = folder / "config.json"
    if not path.is_file():
        hint = f"fetch one with `hf download {REPOSITORY} --local-dir <folder>`"
        raise UserError(f"{key}: {folder} is not a Mask2Former folder; {hint}")
    config = read_config(path, key)
    if config.get("model_type") != "mask2former":
        raise UserError(
            f"{key}: {folder} holds a {config.get('model_type')!r} model, not a 'mask2former' one; {REPOSITORY} is one"
        )
    labels = config.get("id2label")
    labels = labels if isinstance(labels, dict) else {}
    if len(labels) != len(CLASSES) or (labels.get("0"), labels.get("79")) != (CLASSES[0], CLASSES[79]):
        raise UserError(
            f"{key}: {path} has {len(labels)} classes in id2label, from {labels.get('0')!r}; "
            f"COCO's 80 instance classes are needed, from {CLASSES[0]!r} to {CLASSES[79]!r}"
        )


def prepare(image: Tensor, short: int = SHORT, long: int = LONG) -> tuple[Tensor, tuple[int, int]]:
    """The model's pixel values (3, h, w) of an image (3, H, W) in [0, 1], and the (height, width) before padding.

    Resized by OpenCV's bilinear rule (no antialiasing, as in OpenMMLab) to fit ``short`` and ``long``, padded to
    MULTIPLE with grey, normalised.
    """
    sides = image.shape[-2:]
    scale = min(long / max(sides), short / min(sides))
    height, width = (int(side * scale + 0.5) for side in sides)
    resized = F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    mean, std = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (MEAN, STD))
    padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
    return (F.pad(resized, padding, value=PADDING) - mean) / std, (height, width)


def instances(
    class_logits: Tensor, mask_logits: Tensor, padded: torch.Size, inner: tuple[int, int], size: torch.Size
) -> Detections:
    """Objects in the outputs for one image: class logits (Q, 80 + 1), mask logits (Q, h, w).

    As in Mask2Former: the Q most probable pairs of query and class; a pair's confidence is its probability times the
    mean of the mask's probabilities above one half. Masks go from the padded input (height, width) by way of its
    ``inner`` part to the image's own ``size``. Pairs that cannot exceed THRESHOLD are dropped before that.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    top, places = probabilities.flatten().topk(len(class_logits))
    likely = top > THRESHOLD
    queries = places[likely] // probabilities.shape[1]
    labels = places[likely] % probabilities.shape[1]
    if not len(queries):
        return Detections((), torch.zeros(0, *size, dtype=torch.bool, device=mask_logits.device))
    logits = _enlarged(mask_logits[queries].float(), padded, inner, size)
    masks = logits > 0
    certainty = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    confidences = (top[likely] * certainty).tolist()
    found = [
        Found(CLASSES[label], confidence, _box(mask), i)
        for i, (label, confidence, mask) in enumerate(zip(labels.tolist(), confidences, masks, strict=True))
        if mask.any()
    ]
    return Detections(tuple(found), masks)


def _enlarged(logits: Tensor, padded: torch.Size, inner: tuple[int, int], size: torch.Size) -> Tensor:
    """Mask logits (n, h, w) at the image's size (n, H, W)."""
    whole = F.interpolate(logits[None], size=tuple(padded), mode="bilinear", align_corners=False)
    cut = whole[..., : inner[0], : inner[1]]
    return F.interpolate(cut, size=tuple(size), mode="bilinear", align_corners=False)[0]


def _box(mask: Tensor) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a mask (H, W) that is not empty; right and bottom lie outside it."""
    columns = mask.any(0).nonzero()
    rows = mask.any(1).nonzero()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
