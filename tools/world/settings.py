"""`data/world/params.yaml`: how the embedded world's teacher, text encoders, autoencoder and CLIP are made."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

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


def share(text: str) -> Real:
    """The share of a tag's images that have an error; tools/world/caption_noise.py says what is drawn."""
    return param(f"share of the tag's images that show {text}", source=OURS, ge=0, le=1)


class ErrorShares(Section):
    """The shares of the errors that images of a tag can have; an image has one at most."""

    @model_validator(mode="after")
    def _check_sum(self) -> ErrorShares:
        shares = self.model_dump()
        if sum(shares.values()) > 1:
            raise ValueError(f"{' + '.join(shares)}: {sum(shares.values()):g}; allowed: up to 1")
        return self


class ShapeErrors(ErrorShares):
    """Of a single object."""

    another_shape: Real = share("another shape")


class PairErrors(ErrorShares):
    """Of two objects."""

    dropped_object: Real = share("only one of the two")
    another_shape: Real = share("another shape in place of one of the two")


class NumberErrors(ErrorShares):
    """Of so many objects of a shape."""

    another_number: Real = share("another number from 1 to 4")


class ColorErrors(ErrorShares):
    """Of one coloured object."""

    another_color: Real = share("another colour")


class PlaceErrors(ErrorShares):
    """Of two objects in a relation."""

    any_arrangement: Real = share("both objects anywhere, by chance (3 in 8) in the relation after all")
    exchanged_places: Real = share("the opposite relation")


class PairColorErrors(ErrorShares):
    """Of two coloured objects."""

    exchanged_colors: Real = share("each object in the other's colour (where both are one colour: another_color)")
    another_color: Real = share("another colour on one of the two")


class CaptionNoiseParams(Section):
    """What the teacher's training images show against their captions, by tag."""

    single_object: ShapeErrors
    two_object: PairErrors
    counting: NumberErrors
    colors: ColorErrors
    position: PlaceErrors
    color_attr: PairColorErrors
    counted_color: NumberErrors
    colored_position: PlaceErrors

    def of(self, tag: str) -> dict[str, float]:
        """The errors of a tag and their shares."""
        return self.model_dump()[tag]


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


class ImperfectParams(Section):
    """The teacher's second training, on captions that are partly wrong; what is not here is the first one's."""

    images: Whole = param("training images, rendered and encoded once", unit="images", source=OURS, ge=1)
    iterations: Whole = param("optimizer steps", unit="steps", source=OURS, ge=1)
    lr: Real = param("AdamW step size", source=OURS, gt=0)
    ema_decay: Real = param("of the weight average that is kept", source=OURS, ge=0, lt=1)
    caption_noise: CaptionNoiseParams


class WorldParams(Section):
    """The whole recipe."""

    seed: Whole = param("of every part's initial weights, images and noise", source=OURS, ge=0)
    threads: Whole = param("CPU threads of a part; part of the result's bytes", unit="threads", source=OURS, ge=1)
    text: TextParams
    vae: VaeParams
    clip: ClipParams
    teacher: TeacherParams
    imperfect: ImperfectParams


def load_world_params(root: Path = Path(".")) -> WorldParams:
    """The validated recipe; UserError naming the key otherwise."""
    return load_settings(WorldParams, root / WORLD_PARAMS, str(WORLD_PARAMS))
