"""`rtdmd world clip`: a small CLIPModel of the world, the differentiable reward and the feature space of the metrics.

Its text tower starts from the parsed and frozen text encoder (contrastive training alone erases relations); the vision
tower and both projections learn by contrasting each image with *every* training caption. Captions that also describe
the image exactly are taken out of the contrast: they are not wrong answers. Held-out captions are never seen.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModelWithProjection

from rtdmd.common.progress import progress
from rtdmd.common.rng import numpy_generator
from rtdmd.world import IMAGE_SIZE
from rtdmd.world.grammar import Caption, captions_of
from rtdmd.world.render import render, sample_scenes
from rtdmd.world.tokenizer import make_tokenizer
from rtdmd.world.verifier import verify
from tools.world.common import WORK, cosine_after, finish, part_folder, start
from tools.world.settings import ClipParams, WorldParams, load_world_params
from tools.world.text import OPPOSITE


def make_clip(params: ClipParams, text: CLIPTextModelWithProjection) -> CLIPModel:
    """A CLIPModel whose text tower is a copy of ``text`` (all but its projection)."""
    vision = {
        "hidden_size": params.width,
        "intermediate_size": 4 * params.width,
        "num_hidden_layers": params.layers,
        "num_attention_heads": params.heads,
        "image_size": IMAGE_SIZE,
        "patch_size": params.patch_size,
        "hidden_act": "gelu",
    }
    config = CLIPConfig(
        text_config=text.config.to_dict(),
        vision_config=vision,
        projection_dim=params.projection,
        logit_scale_init_value=2.6592,
    )
    clip = CLIPModel(config)
    clip.text_model.load_state_dict(text.text_model.state_dict(), strict=True)
    clip.text_model.requires_grad_(False)
    return clip


def make_processor() -> CLIPImageProcessor:
    """The preprocessing that belongs to the model: 36 pixels, mean and standard deviation one half."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size, image_mean=half, image_std=half)


def contrast_loss(images: Tensor, texts: Tensor, scale: Tensor, truth: Tensor, also_true: Tensor) -> Tensor:
    """Cross-entropy of each image over all captions, and of each caption present over the images.

    images (B, D) and texts (N, D) unit vectors; truth (B,) caption of each image; also_true (N, N) whether an image
    drawn for the row's caption also shows the column's exactly (diagonal False).
    """
    logits = scale * images @ texts.T  # (B, N)
    over_captions = F.cross_entropy(logits.masked_fill(also_true[truth], -torch.inf), truth)
    own = logits[:, truth].T  # (B captions, B images)
    other_right = also_true[truth][:, truth].T | (truth[:, None] == truth[None, :])
    other_right.fill_diagonal_(False)
    over_images = F.cross_entropy(own.masked_fill(other_right, -torch.inf), torch.arange(len(truth)))
    return (over_captions + over_images) / 2


def compatible(one: Caption, other: Caption) -> bool:
    """Whether one image can show both captions exactly: same objects, no clash of colours or of relations."""
    if {i["class"]: i["count"] for i in one.include} != {i["class"]: i["count"] for i in other.include}:
        return False
    colors = [{i["class"]: i["color"] for i in caption.include if "color" in i} for caption in (one, other)]
    if any(colors[1].get(shape, color) != color for shape, color in colors[0].items()):
        return False
    relations = [_relation(caption) for caption in (one, other)]
    return None in relations or relations[0] == relations[1] or relations[0] != _opposite(relations[1])


def _relation(caption: Caption) -> tuple[str, str] | None:
    """(shape, relation to the other shape) with the alphabetically first shape as subject; None without a relation."""
    for item in caption.include:
        if "position" in item:
            relation, reference = item["position"]
            subject, other = item["class"], caption.include[reference]["class"]
            return (subject, relation) if subject < other else (other, OPPOSITE[relation])
    return None


def _opposite(relation: tuple[str, str] | None) -> tuple[str, str] | None:
    return None if relation is None else (relation[0], OPPOSITE[relation[1]])


def embed_texts(clip: CLIPModel, hidden: Tensor) -> Tensor:
    """Unit text embeddings (N, D) from the frozen tower's pooled states (N, W)."""
    return F.normalize(clip.text_projection(hidden), dim=-1)


def embed_images(clip: CLIPModel, images: Tensor) -> Tensor:
    """Unit image embeddings (B, D) of images (B, 3, 36, 36) in [0, 1]."""
    pooled = clip.vision_model(pixel_values=images * 2 - 1).pooler_output
    return F.normalize(clip.visual_projection(pooled), dim=-1)


def top_one(clip: CLIPModel, captions: list[Caption], pooled: Tensor, seed: int) -> float:
    """Share of 1 000 images whose best caption among ``captions`` is one they show exactly."""
    rng = numpy_generator(seed, "clip-check", len(captions))
    truth = rng.integers(len(captions), size=1000)
    images = render(sample_scenes([captions[i] for i in truth], rng))
    with torch.no_grad():
        best = (embed_images(clip, images) @ embed_texts(clip, pooled).T).argmax(1)
    return verify(images, [captions[i].metadata() for i in best.tolist()]).strict.mean().item()


def train_clip(params: WorldParams, clip: CLIPModel, captions: list[Caption], pooled: Tensor) -> None:
    """Train the vision tower and the projections in place."""
    also_true = torch.tensor([[a is not b and compatible(a, b) for b in captions] for a in captions])
    trained = [p for p in clip.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=params.clip.lr, weight_decay=params.clip.weight_decay)
    rng = numpy_generator(params.seed, "clip")
    bar = progress(range(params.clip.iterations), desc="clip")
    for step in bar:
        optimizer.param_groups[0]["lr"] = params.clip.lr * cosine_after(step, params.clip.iterations, 0.5)
        truth = rng.integers(len(captions), size=params.clip.batch_size)
        images = render(sample_scenes([captions[i] for i in truth], rng))
        scale = clip.logit_scale.exp()
        vectors = embed_images(clip, images), embed_texts(clip, pooled)
        loss = contrast_loss(*vectors, scale, torch.from_numpy(truth), also_true)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            bar.set_postfix(refresh=False, loss=f"{loss.item():.3f}", scale=f"{scale.item():.1f}")


def run(root: Path = Path(".")) -> None:
    """Train the CLIP model; writes clip/ (model, tokenizer, processor) under the world's work folder."""
    params = load_world_params(root)
    start(params)
    torch.manual_seed(params.seed)
    text = CLIPTextModelWithProjection.from_pretrained(root / WORK / "text" / "text_encoder")
    clip, tokenizer = make_clip(params.clip, text), make_tokenizer()
    splits = {split: captions_of(split) for split in ("train", "heldout")}
    pooled = {}
    for split, captions in splits.items():
        ids = tokenizer([c.prompt for c in captions], padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            pooled[split] = clip.text_model(ids).pooler_output
    train_clip(params, clip, splits["train"], pooled["train"])
    clip.eval().requires_grad_(True)
    folder = part_folder(root, "clip")
    clip.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    make_processor().save_pretrained(folder / "clip")
    finish(folder, {f"top1.{split}": top_one(clip, splits[split], pooled[split], params.seed) for split in splits})
