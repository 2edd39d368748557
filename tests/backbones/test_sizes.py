"""Other resolutions than the trained one: which a model can draw, and the levels that it has there."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.backbones.sizes import require_suites, sized_backbone
from rtdmd.common.errors import UserError
from rtdmd.config import preset
from rtdmd.evaluate.samples import Sampler
from rtdmd.plan.published import TEACHERS
from tests.backbones.families import Loaded


def test_the_levels_are_those_of_the_other_size(loaded: Loaded) -> None:
    """FLUX.1's shift is linear in the number of image tokens, FLUX.2's the pipeline's own; SD3's is one for all."""
    model = loaded.family.params(loaded.folder)
    sized = sized_backbone(model, 2 * model.resolution, "a key")
    backbone = loaded.backbone

    def velocity(x: torch.Tensor, *_: Any) -> torch.Tensor:
        return x

    for multi_step, levels in ((False, sized.sigmas(4)), (True, sized.teacher_sigmas(4))):
        own = backbone.teacher_sigmas(4) if multi_step else backbone.sigmas(4)
        sampler = Sampler(backbone, velocity, own, 0.9, False, backbone.latent_shape(), multi_step)
        resized = sampler.resized(sized)
        assert torch.equal(resized.sigmas, levels) and resized.shape == sized.latent_shape()
        assert torch.equal(resized.sigmas, own) == (loaded.family.name == "sd3")
    if loaded.family.name == "flux1":
        config, tokens = loaded.backbone.pipeline.scheduler.config, 4 * _tokens(backbone.latent_shape())
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        shift = exp(config.base_shift + slope * (tokens - config.base_image_seq_len))
        expected = [shift / (shift + 1 / t - 1) for t in (1, 0.75, 0.5, 0.25)] + [0.0]
        assert sized.sigmas(4).tolist() == pytest.approx(expected, rel=1e-5)


def _tokens(shape: tuple[int, int, int]) -> int:
    return shape[1] * shape[2] // 4


def test_a_size_that_cannot_be_drawn_is_named_by_its_suite() -> None:
    """As the recorded configurations say: SD3-M's table of positions ends at 3072 pixels."""
    name = "stabilityai/stable-diffusion-3-medium-diffusers"
    for resolution, says in ((1032, "1032 is not a multiple of 16, which"), (4096, "4096 is more than 3072, the")):
        suites = [{"name": "own", "prompts": "drawbench", "images_per_prompt": 1, "resolution": resolution}]
        params = preset("sd3m", {"evaluate": {"suites": suites}})
        with pytest.raises(UserError) as caught:
            require_suites(params, TEACHERS[name], name)
        assert str(caught.value).startswith(f"evaluate.suites: own: resolution: {says}")
    for name in ("sd3m", "sd35m", "flux1-dev", "flux2-klein-4b", "flux2-klein-9b"):
        params = preset(name)
        require_suites(params, TEACHERS[params.model.teacher], name)


def test_a_local_teacher_is_looked_at(tiny_teacher: Path) -> None:
    model = preset("smoke", {"model": {"teacher": str(tiny_teacher)}}).model
    assert sized_backbone(model, 24, "a key").latent_shape() == (4, 6, 6)
    with pytest.raises(UserError, match=r"^a key: 30 is not a multiple of 12, which .* needs$"):
        sized_backbone(model, 30, "a key")
    with pytest.raises(UserError, match=r"^a key: 48 is more than 36, the largest that .* can draw$"):
        sized_backbone(model, 48, "a key")
