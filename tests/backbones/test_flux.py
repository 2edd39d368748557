"""What only the FLUX families have: a transformer without guidance input, and a step-distilled model as teacher."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json
from rtdmd.common.rng import normal
from tests.backbones.families import FAMILIES, PROMPTS, plain
from tests.tiny import edit_json

FLUX1, FLUX2 = FAMILIES["flux1"], FAMILIES["flux2"]


def test_flux1_without_a_guidance_input_runs_unguided_only(tmp_path: Path) -> None:
    """FLUX.1 [schnell]: the pipeline passes no guidance, and so do we; asking for one is an error, not ignored."""
    folder = tmp_path / "schnell"
    FLUX1.write(folder)
    config = read_json(folder / "transformer/config.json") | {"guidance_embeds": False}
    shutil.rmtree(folder / "transformer")
    FluxTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    with pytest.raises(UserError, match=r"model\.guidance: 3\.5, but .* has no input for it; allowed for it: 1"):
        FLUX1.load(folder)
    backbone = FLUX1.load(folder, guidance=1.0)
    x1, cond = normal((2, *backbone.latent_shape()), 0, "schnell"), backbone.encode(PROMPTS)
    theirs = FLUX1.call(plain(FLUX1, folder), x1, steps=1, guidance_scale=3.5)
    v = backbone.velocity(backbone.transformer, x1, torch.ones(2), cond)
    assert not backbone.distilled
    assert (FLUX1.returned(backbone.pipeline, x1 - v) - theirs).abs().max() < 1e-5
    with pytest.raises(ValueError, match="no input for it"):
        backbone.velocity(backbone.transformer, x1, torch.ones(2), cond, guidance=3.5)


def test_flux2_step_distilled_takes_no_guidance(tmp_path: Path) -> None:
    """The pipeline of FLUX.2-klein-4B ignores a guidance; as a guided teacher it would silently be an unguided one."""
    folder = tmp_path / "distilled"
    FLUX2.write(folder)
    edit_json(folder / "model_index.json", is_distilled=True)
    with pytest.raises(UserError, match=r"model\.guidance: 4, but .* is step-distilled .* name a base model"):
        FLUX2.load(folder)
    assert FLUX2.load(folder, guidance=1.0, vae=False).sigmas(4).shape == (5,)


def test_bfloat16_rounds_the_time_as_the_pipeline_does(tmp_path: Path) -> None:
    """One step in bfloat16 from the same latents: t is rounded before it is divided by 1000, as in the pipeline."""
    for family in (FLUX1, FLUX2):
        folder = tmp_path / family.name
        family.write(folder)
        low = family.load(folder, dtype="bfloat16")
        x = normal((2, *low.latent_shape()), 0, "low").bfloat16().float()
        cond, sigma = low.encode(PROMPTS), torch.tensor(0.9546)
        seen: list[torch.Tensor] = []
        hook = low.transformer.register_forward_pre_hook(
            lambda _, __, given, seen=seen: seen.append(given["timestep"]), with_kwargs=True
        )
        low.velocity(low.transformer, x, sigma.expand(2), cond)
        hook.remove()
        expected = (sigma * 1000).expand(2).to(torch.bfloat16) / 1000  # `t.expand(B).to(latents.dtype) / 1000`
        assert torch.equal(seen[0], expected) and seen[0].dtype == torch.bfloat16
        assert not torch.equal(seen[0], sigma.bfloat16().expand(2))  # which rounding σ itself would not give
