"""`rtdmd world teacher`: the multi-step teacher, an SD3Transformer2DModel trained by flow matching on the world.

Images of training captions are rendered and encoded once. Times are logit-normal, shifted towards noise; the weights
that are kept are an exponential average. The text encoders are frozen: unfreezing them erases what they know of
relations. The teacher that is committed goes on from this one (tools/world/imperfect.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from rtdmd.common.files import hash_of, remove, sha256_bytes
from rtdmd.common.progress import progress
from rtdmd.common.rng import numpy_generator, torch_generator
from rtdmd.train.engine import checkpoint
from rtdmd.world import GRID, IMAGE_SIZE
from rtdmd.world.grammar import TAGS, Caption, auxiliary, captions_of
from rtdmd.world.render import Scenes, render, sample_scenes
from rtdmd.world.verifier import verify
from tools.world.common import WORK, cosine_after, finish, part_folder, start
from tools.world.settings import TeacherParams, WorldParams, load_world_params

SAVE_EVERY = 1000  # optimizer steps between checkpoints: a few minutes
HELDOUT_IMAGES = 600  # of each tag, by which the teacher is judged: a share of them is known to ± 0.04
T5_TOKENS = 1  # max_sequence_length of a pipeline without a T5: that many zero tokens
Draw = Callable[[list[Caption], np.ndarray, np.random.Generator], Iterable[Scenes]]
"""From captions and the index of each image's: batches of scenes, one scene an image."""


def make_transformer(
    params: TeacherParams, vae: AutoencoderKL, encoders: list[CLIPTextModelWithProjection]
) -> SD3Transformer2DModel:
    """An SD3Transformer2DModel with one token per cell of the world's grid."""
    joint = sum(encoder.config.hidden_size for encoder in encoders)
    pooled = sum(encoder.config.projection_dim for encoder in encoders)
    latent = IMAGE_SIZE // 2 ** (len(vae.config.block_out_channels) - 1)
    return SD3Transformer2DModel(
        sample_size=latent,
        patch_size=latent // GRID,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        num_layers=params.layers,
        attention_head_dim=params.width // params.heads,
        num_attention_heads=params.heads,
        joint_attention_dim=joint,
        caption_projection_dim=params.width,
        pooled_projection_dim=pooled,
        pos_embed_max_size=GRID,
        qk_norm="rms_norm",
    )


def assemble_pipeline(root: Path, params: WorldParams) -> StableDiffusion3Pipeline:
    """The pipeline of the parts trained so far, with an untrained transformer."""
    text, vae = root / WORK / "text", AutoencoderKL.from_pretrained(root / WORK / "vae" / "vae")
    tokenizer = CLIPTokenizer.from_pretrained(text / "tokenizer")
    encoders = [CLIPTextModelWithProjection.from_pretrained(text / name) for name in ("text_encoder", "text_encoder_2")]
    torch.manual_seed(params.seed)
    return StableDiffusion3Pipeline(
        transformer=make_transformer(params.teacher, vae, encoders),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def encode_prompts(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """(sequence (N, L, joint), pooled (N, pooled)) by the pipeline's own encode_prompt."""
    with torch.no_grad():
        embeds, _, pooled, _ = pipe.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
    return embeds, pooled


def draw_captions(params: WorldParams, captions: list[Caption], rng: np.random.Generator) -> np.ndarray:
    """Caption index of each training image: tags by their weights, captions within a tag alike."""
    weight = np.array([params.teacher.tag_weights[c.tag] / sum(o.tag == c.tag for o in captions) for c in captions])
    return rng.choice(len(captions), size=params.teacher.images, p=weight / weight.sum())


def draw_scenes(
    captions: list[Caption], rows: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[list[Caption], Scenes]]:
    """One scene for each caption index, batch by batch, with their captions."""
    for chunk in progress(np.array_split(rows, max(1, len(rows) // 50)), desc="encode"):
        own = [captions[i] for i in chunk]
        yield own, sample_scenes(own, rng)


def encode_images(vae: AutoencoderKL, scenes: Iterable[Scenes]) -> Tensor:
    """Scaled latents (N, 4, 9, 9) of batches of scenes, N in all."""
    out = []
    with torch.no_grad():
        for batch in scenes:
            out.append(vae.encode(render(batch) * 2 - 1).latent_dist.mean)
    return (torch.cat(out) - vae.config.shift_factor) * vae.config.scaling_factor


def draw_times(count: int, shift: float, generator: torch.Generator) -> Tensor:
    """(count,) logit-normal times in (0, 1), shifted: shift * u / (1 + (shift - 1) u)."""
    u = torch.sigmoid(torch.randn(count, generator=generator))
    return shift * u / (1 + (shift - 1) * u)


def train_teacher(
    params: WorldParams,
    model: SD3Transformer2DModel,
    latents: Tensor,
    rows: Tensor,
    cond: tuple[Tensor, Tensor],
    folder: Path,
) -> None:
    """Flow matching in place; ``model`` ends with the averaged weights. cond[.][0] is the null prompt.

    The state is saved in ``folder`` every SAVE_EVERY steps. A training that was killed goes on from there, to the same
    bytes; one whose settings or inputs differ begins anew.
    """
    p, generator = params.teacher, torch_generator(params.seed, "teacher")
    named = {name: w for name, w in model.named_parameters() if w.requires_grad}
    weights = list(named.values())
    folder = folder / _run_name(params, [*weights, latents, rows, *cond])
    average = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr=p.lr, weight_decay=p.weight_decay, betas=(0.9, 0.99))
    found = checkpoint.load(folder)
    if found is not None:
        checkpoint.copy_indexed(weights, found.tensors["weights"])
        checkpoint.copy_indexed(average, checkpoint.indexed([found.tensors["average"][name] for name in named]))
        checkpoint.restore_optimizer(optimizer, found.tensors["optimizer"])
        generator.set_state(found.tensors["generator"]["state"])
    first = found.step if found is not None else 0
    bar = progress(range(first, p.iterations), desc="teacher", initial=first, total=p.iterations)
    for step in bar:
        optimizer.param_groups[0]["lr"] = p.lr * cosine_after(step, p.iterations, 0.4, warmup=200)
        pick = torch.randint(len(latents), (p.batch_size,), generator=generator)
        x0, prompt = latents[pick], rows[pick] + 1
        prompt = torch.where(torch.rand(p.batch_size, generator=generator) < p.caption_dropout, 0, prompt)
        noise, time = torch.randn(x0.shape, generator=generator), draw_times(p.batch_size, p.time_shift, generator)
        noisy = torch.lerp(x0, noise, time[:, None, None, None])
        velocity = model(noisy, cond[0][prompt], cond[1][prompt], timestep=1000 * time, return_dict=False)[0]
        loss = (velocity - (noise - x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - min(p.ema_decay, (step + 1) / (step + 10)))
        if step % 200 == 0:
            bar.set_postfix(refresh=False, loss=f"{loss.item():.4f}")
        if (step + 1) % SAVE_EVERY == 0:
            state = {
                "weights": checkpoint.indexed(weights),
                "average": dict(zip(named, average, strict=True)),  # by name: `tools.world.teacher_row` judges it
                "optimizer": checkpoint.optimizer_tensors(optimizer),
                "generator": {"state": generator.get_state()},
            }
            checkpoint.save(folder, checkpoint.Snapshot(step + 1, state))
    with torch.no_grad():
        torch._foreach_copy_(weights, average)


def _run_name(params: WorldParams, tensors: Iterable[Tensor]) -> str:
    """A hash of what a training's bytes depend on: its settings, first weights and data."""
    data = [sha256_bytes(tensor.detach().numpy().tobytes()) for tensor in tensors]
    return hash_of([params.model_dump(mode="json"), data])[:12]


def strict_by_tag(
    pipe: StableDiffusion3Pipeline, split: str, seed: int, guidance: float, per_tag: int
) -> dict[str, float]:
    """Strict score of the pipeline's own 28-step guided images for each tag of a split, and their mean; ``clutter``:
    the share of images with something in a cell that is no object."""
    out = {}
    clutter = []
    pipe.set_progress_bar_config(disable=True)
    for tag in TAGS:
        captions = [c for c in captions_of(split) if c.tag == tag]
        chosen = [captions[i % len(captions)] for i in range(per_tag)]
        images = pipe(
            [c.prompt for c in chosen],
            num_inference_steps=28,
            guidance_scale=guidance,
            max_sequence_length=T5_TOKENS,
            generator=torch_generator(seed, "teacher-check", split, tag),
            output_type="pt",
        ).images
        verdict = verify(images, [c.metadata() for c in chosen])
        out[f"strict.{split}.{tag}"] = verdict.strict.mean().item()
        clutter.append((verdict.parse.state == -1).any(1).float().mean().item())
    return out | {f"strict.{split}": sum(out.values()) / len(out), f"clutter.{split}": sum(clutter) / len(clutter)}


def figures(pipe: StableDiffusion3Pipeline, params: WorldParams) -> dict[str, float]:
    """Strict scores of the pipeline on both splits at the recipe's guidance."""
    seed, guidance = params.seed, params.teacher.guidance
    train = strict_by_tag(pipe, "train", seed, guidance, per_tag=150)
    return train | strict_by_tag(pipe, "heldout", seed, guidance, per_tag=HELDOUT_IMAGES)


def make_part(part: str, root: Path, params: WorldParams, pipe: StableDiffusion3Pipeline, draw: Draw) -> None:
    """Train the pipeline's transformer on images of training captions, their scenes by ``draw``; writes the pipeline as
    a part under the world's work folder and reports its strict score."""
    captions = [*captions_of("train"), *auxiliary()]
    rng = numpy_generator(params.seed, "teacher-data")
    cond = encode_prompts(pipe, ["", *(c.prompt for c in captions)])
    rows = draw_captions(params, captions, rng)
    latents = encode_images(pipe.vae, draw(captions, rows, rng))
    states = root / WORK / f".{part}"
    train_teacher(params, pipe.transformer.train(), latents, torch.from_numpy(rows), cond, states)
    pipe.transformer.eval()
    folder = part_folder(root, part)
    pipe.save_pretrained(folder / "teacher")
    finish(folder, figures(pipe, params))
    remove(states)


def run(root: Path = Path(".")) -> None:
    """Train the teacher, from nothing and on true captions (`make_part`)."""
    params = load_world_params(root)
    start(params)

    def draw(captions: list[Caption], rows: np.ndarray, rng: np.random.Generator) -> Iterator[Scenes]:
        return (scenes for _, scenes in draw_scenes(captions, rows, rng))

    make_part("teacher", root, params, assemble_pipeline(root, params), draw)
