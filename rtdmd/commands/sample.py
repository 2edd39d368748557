"""`rtdmd sample "<prompt>"`: a PNG grid of one prompt's images from any model of this folder.

    rtdmd sample "a photo of a red circle" --from results/train_rtdmd --images 8 --seed 0 --out grid.png

``--from`` is teacher (all its steps, guided), teacher_few_step (K steps, guided), student_base (model.student as it
is), a training stage (train_acdmd, train_rtdmd, or their folders in results/), or a folder that publish or import
wrote. Such a folder is sampled as it records: on its base, at its resolution, in its steps, at its η. Everything else
comes from params.yaml.
``--resolution`` draws at another size than the model was trained at, with the levels that its scheduler has there.
Image i starts from the noise of (seed, i) for every model and prompt, so that grids can be compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from rtdmd.backbones import Conditioning, load_backbone
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.backbones.sampling import ImageNoise, sample
from rtdmd.backbones.sizes import sized_backbone
from rtdmd.common.errors import UserError
from rtdmd.common.escape import printable
from rtdmd.common.images import grid, save_png
from rtdmd.common.torch_setup import configure
from rtdmd.conditioning.text_cache import NULL_PROMPT, TextCache
from rtdmd.config import ModelParams, Params, load_params
from rtdmd.evaluate.samples import Sampler, load_sampler
from rtdmd.publish.merge import MERGED
from rtdmd.publish.sampler import published_sampler, recorded, with_base

MODELS = ("teacher", "teacher_few_step", "student_base", "train_acdmd", "train_rtdmd")
MIN_SIDE = 144  # smaller images are enlarged to about this many pixels in the grid


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Write the grid of ``arguments`` (prompt, source, images, seed, out) and print its path."""
    if arguments.images < 1:
        raise UserError(f"--images {arguments.images}: at least 1")
    params = load_params(root / "params.yaml")
    folder = published_folder(arguments.source, root)
    if folder is not None:
        params = params.model_copy(update={"model": published_model(folder, params.model, arguments.base, root)})
    elif arguments.base is not None:
        raise UserError(f"--base {arguments.base}: only for a published folder; --from {arguments.source} is none")
    device = configure(params.run)
    text = encoded(arguments.prompt, params, device, root)
    sampler = find_sampler(arguments.source, params, text, device, root)
    resolution = params.model.resolution
    if arguments.resolution not in (None, resolution):
        resolution = arguments.resolution
        sampler = sampler.resized(sized_backbone(params.model, resolution, "--resolution", root))
    images = draw(sampler, text.of([arguments.prompt]), arguments.images, arguments.seed, params.evaluate.batch_size)
    scale = max(1, MIN_SIDE // resolution)
    save_png(arguments.out, grid(images, columns=math.ceil(math.sqrt(arguments.images)), scale=scale))
    print(arguments.out)


def encoded(prompt: str, params: Params, device: torch.device, root: Path) -> TextCache:
    """A text cache of the null prompt and ``prompt``, by the teacher's own text encoders (released afterwards)."""
    backbone = load_backbone(params.model, text=True, vae=False, bases="none", device=device, root=root)
    prompts = list(dict.fromkeys([NULL_PROMPT, prompt]))
    return TextCache(backbone.encode(prompts), {text: row for row, text in enumerate(prompts)})


def published_folder(source: str, root: Path) -> Path | None:
    """The folder of weights that ``--from`` names; None where it names a model of this folder's run."""
    if source.removeprefix("results/").rstrip("/") in MODELS:
        return None
    found = any((root / source / weights).is_file() for weights in (PUBLISHED, MERGED))
    return root / source if found else None


def published_model(folder: Path, model: ModelParams, base: str | None, root: Path) -> ModelParams:
    """Section model of a published folder, on the student's base: as it records it; the params' where it has no record,
    which is said."""
    found = recorded(folder)
    model = model.of_student()
    if found is not None:
        model = found.on(base, root)
    elif base is not None:
        model = with_base(model, base, root)
    how = "as it records" if found is not None else "it has no record, so as params.yaml says"
    sampler = f"{model.size_text} pixels, {model.num_steps} steps, η {model.eta:g}"
    print(f"{folder}: {how}: on {printable(model.teacher)}, {sampler}", file=sys.stderr)
    return model


def find_sampler(source: str, params: Params, text: TextCache, device: torch.device, root: Path) -> Sampler:
    """The model that ``--from`` names; UserError that lists what it may be."""
    name = source.removeprefix("results/").rstrip("/")
    if name in MODELS:
        return load_sampler(name, params, text, device, root)
    folder = published_folder(source, root)
    if folder is None:
        raise UserError(
            f"--from {source}: neither one of {', '.join(MODELS)} nor a folder with {PUBLISHED} or {MERGED}"
        )
    return published_sampler(folder, params.model, device, root)


@torch.no_grad()
def draw(sampler: Sampler, cond: Conditioning, count: int, seed: int, batch_size: int) -> Tensor:
    """``count`` images (count, 3, H, W) in [0, 1] of one prompt (``cond``: one row)."""
    backbone = sampler.backbone
    batches = []
    for start in range(0, count, batch_size):
        images = [(0, i) for i in range(start, min(start + batch_size, count))]
        noise = ImageNoise(seed, images, sampler.shape, backbone.device)
        latents = sample(sampler.velocity, noise, cond.expand(len(images)), sampler.sigmas, sampler.eta)
        batches.append(backbone.decode(latents).cpu())
    return torch.cat(batches)
