"""`data/world/params.yaml`: how the embedded world's teacher, text encoders, autoencoder and CLIP are made."""

from __future__ import annotations

from pathlib import Path

from rtdmd.common.section import Real, Section, Whole, param
from rtdmd.config.load import load_settings

OURS = "ours, measured on the embedded world"
WORLD_PARAMS = Path("data/world/params.yaml")


class TextEncoderParams(Section):
    """Size of one CLIP text encoder."""

    width: Whole = param("hidden and projection size", source=OURS, ge=8)
    layers: Whole = param("transformer layers; SD3 conditions on the last but one", source=OURS, ge=2)
    heads: Whole = param("attention heads", source=OURS, ge=1)


class TextParams(Section):
    """Parsing pre-training of the two text encoders."""

    captions: Whole = param("random captions of a wider grammar", unit="captions", source=OURS, ge=0)
    iterations: Whole = param("optimizer steps per encoder", unit="steps", source=OURS, ge=1)
    batch_size: Whole = param("captions a step", unit="captions", source=OURS, ge=1)
    lr: Real = param("AdamW step size", source=OURS, gt=0)
    weight_decay: Real = param("AdamW's weight decay", source=OURS, ge=0)
    encoder: TextEncoderParams
    encoder_2: TextEncoderParams


class VaeParams(Section):
    """The autoencoder."""

    channels: tuple[Whole, ...] = param(
        "channels of each level", unit="channels", source=OURS, min_length=3, max_length=3
    )
    latent_channels: Whole = param("latent channels", unit="channels", source=OURS, ge=1)
    iterations: Whole = param("optimizer steps", unit="steps", source=OURS, ge=1)
    batch_size: Whole = param("images a step", unit="images", source=OURS, ge=1)
    lr: Real = param("AdamW step size", source=OURS, gt=0)
    foreground: Real = param("loss weight of object pixels, dilated by one", source=OURS, ge=1)
    kl_weight: Real = param("weight of the KL per latent element", source=OURS, ge=0)


class ClipParams(Section):
    """The CLIP model that serves as differentiable reward and feature space."""

    width: Whole = param("hidden size of the vision tower", source=OURS, ge=8)
    layers: Whole = param("layers of the vision tower", source=OURS, ge=1)
    heads: Whole = param("attention heads of the vision tower", source=OURS, ge=1)
    patch_size: Whole = param("vision patch side", unit="pixels", source=OURS, ge=1)
    projection: Whole = param("size of the joint embedding", source=OURS, ge=8)
    iterations: Whole = param("optimizer steps", unit="steps", source=OURS, ge=1)
    batch_size: Whole = param("images a step", unit="images", source=OURS, ge=1)
    lr: Real = param("AdamW step size", source=OURS, gt=0)
    weight_decay: Real = param("AdamW's weight decay", source=OURS, ge=0)


class TeacherParams(Section):
    """The multi-step teacher."""

    width: Whole = param("hidden size, a multiple of heads", source=OURS, ge=8)
    layers: Whole = param("joint transformer blocks", source=OURS, ge=1)
    heads: Whole = param("attention heads", source=OURS, ge=1)
    images: Whole = param("training images, rendered and encoded once", unit="images", source=OURS, ge=1)
    iterations: Whole = param("optimizer steps", unit="steps", source=OURS, ge=1)
    batch_size: Whole = param("images a step", unit="images", source=OURS, ge=1)
    lr: Real = param("AdamW step size", source=OURS, gt=0)
    weight_decay: Real = param("AdamW's weight decay", source=OURS, ge=0)
    ema_decay: Real = param("of the weight average that is kept", source=OURS, ge=0, lt=1)
    time_shift: Real = param("static shift of the logit-normal training times", source=OURS, gt=0)
    caption_dropout: Real = param("share of images trained on the null prompt", source="SD3 report: 0.1", ge=0, lt=1)
    guidance: Real = param("classifier-free guidance at which the teacher is judged", source=OURS, ge=1)
    tag_weights: dict[str, Real] = param("share of each tag among the training images", source=OURS)


class WorldParams(Section):
    """The whole recipe."""

    seed: Whole = param("of every part's initial weights, images and noise", source=OURS, ge=0)
    threads: Whole = param("CPU threads of a part; part of the result's bytes", unit="threads", source=OURS, ge=1)
    text: TextParams
    vae: VaeParams
    clip: ClipParams
    teacher: TeacherParams


def load_world_params(root: Path = Path(".")) -> WorldParams:
    """The validated recipe; UserError naming the key otherwise."""
    return load_settings(WorldParams, root / WORLD_PARAMS, str(WORLD_PARAMS))
