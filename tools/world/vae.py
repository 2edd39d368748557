"""`rtdmd world vae`: the teacher's AutoencoderKL, 36x36 images to 4x9x9 latents.

The loss is a squared error in which the objects, dilated by a pixel, weigh more than the background: without the
dilation their outlines swell until circles decode as squares. Latents are centred and scaled through the config's
shift_factor and scaling_factor, as SD3's are.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from rtdmd.common.progress import progress
from rtdmd.common.rng import numpy_generator, torch_generator
from rtdmd.world import IMAGE_SIZE
from rtdmd.world.grammar import captions_of
from rtdmd.world.render import coverage_map, render, sample_scenes
from rtdmd.world.verifier import verify
from tools.world.common import cosine_after, finish, part_folder, start
from tools.world.settings import VaeParams, load_world_params


def make_vae(params: VaeParams, scale: float = 1.0, shift: float = 0.0) -> AutoencoderKL:
    """A three-level AutoencoderKL; images in [-1, 1]."""
    levels = len(params.channels)
    return AutoencoderKL(
        block_out_channels=tuple(params.channels),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=params.latent_channels,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def loss_weight(coverage: Tensor, foreground: float) -> Tensor:
    """Pixel weights (B, 1, H, W): ``foreground`` on objects dilated by one pixel, 1 elsewhere."""
    return 1 + (foreground - 1) * F.max_pool2d(coverage, 3, stride=1, padding=1)


def latent_statistics(vae: AutoencoderKL, images: Tensor) -> tuple[float, float]:
    """(mean, standard deviation) of the latent means of images in [0, 1]."""
    with torch.no_grad():
        latents = vae.encode(images * 2 - 1).latent_dist.mean
    return latents.mean().item(), latents.std().item()


def verified(vae: AutoencoderKL, split: str, count: int, seed: int) -> float:
    """Share of ``count`` images whose reconstruction passes the strict verifier."""
    rng = numpy_generator(seed, "vae-check", split)
    captions = captions_of(split)
    chosen = [captions[i] for i in rng.integers(len(captions), size=count)]
    images = render(sample_scenes(chosen, rng))
    with torch.no_grad():
        decoded = torch.cat([vae.decode(vae.encode(b * 2 - 1).latent_dist.mean).sample for b in images.split(250)])
    return verify(decoded / 2 + 0.5, [c.metadata() for c in chosen]).strict.mean().item()


def run(root: Path = Path(".")) -> None:
    """Train the autoencoder; writes vae/ under the world's work folder."""
    params = load_world_params(root)
    start(params)
    torch.manual_seed(params.seed)
    vae = make_vae(params.vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=params.vae.lr, weight_decay=0.0)
    rng, noise = numpy_generator(params.seed, "vae"), torch_generator(params.seed, "vae-noise")
    captions = captions_of("train")
    bar = progress(range(params.vae.iterations), desc="vae")
    for step in bar:
        optimizer.param_groups[0]["lr"] = params.vae.lr * cosine_after(step, params.vae.iterations, 0.4)
        scenes = sample_scenes([captions[i] for i in rng.integers(len(captions), size=params.vae.batch_size)], rng)
        images = render(scenes) * 2 - 1
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(generator=noise)).sample
        error = (loss_weight(coverage_map(scenes), params.vae.foreground) * (decoded - images).square()).mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error + params.vae.kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            bar.set_postfix(refresh=False, error=f"{error.item():.5f}", kl=f"{kl.item():.2f}")
    vae.eval()
    chosen = [captions[i] for i in rng.integers(len(captions), size=1000)]
    mean, std = latent_statistics(vae, render(sample_scenes(chosen, rng)))
    vae.register_to_config(scaling_factor=1 / std, shift_factor=mean)
    folder = part_folder(root, "vae")
    vae.save_pretrained(folder / "vae")
    finish(folder, {f"strict.{s}": verified(vae, s, 2000, params.seed) for s in ("train", "heldout")})
