"""Golden levels of the five presets at 512 and 1024 pixels, written out, from the published scheduler settings."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rtdmd.backbones.parts import evenly_spaced
from rtdmd.flow.schedule import raw_few_steps, shift_static
from rtdmd.publish.scheduler import scheduler_config
from tests.backbones.real import backbone

SD3 = (1.0, 0.9, 0.75, 0.5, 0.0)
FEW = {  # (preset, pixels): K = 4
    ("sd3m", 512): SD3,
    ("sd3m", 1024): SD3,
    ("sd35m", 512): SD3,
    ("sd35m", 1024): SD3,
    ("flux1-dev", 512): (1.0, 0.849235, 0.652489, 0.384945, 0.0),
    ("flux1-dev", 1024): (1.0, 0.904531, 0.759511, 0.512844, 0.0),
    ("flux2-klein-4b", 512): (1.0, 0.958085, 0.883982, 0.717497, 0.0),
    ("flux2-klein-4b", 1024): (1.0, 0.967384, 0.908144, 0.767200, 0.0),
    ("flux2-klein-9b", 512): (1.0, 0.958085, 0.883982, 0.717497, 0.0),
    ("flux2-klein-9b", 1024): (1.0, 0.967384, 0.908144, 0.767200, 0.0),
}
TEACHER = {  # (preset, pixels, N): the second, third and last level but one
    ("sd35m", 512, 28): (0.987381, 0.974108, 0.008929),
    ("flux1-dev", 512, 28): (0.980656, 0.960644, 0.065020),
    ("flux1-dev", 1024, 28): (0.988409, 0.976222, 0.104721),
    ("flux2-klein-4b", 512, 50): (0.996293, 0.992460, 0.100664),
    ("flux2-klein-4b", 1024, 50): (0.997309, 0.994521, 0.133719),
}


@pytest.mark.parametrize(("preset", "pixels"), FEW)
def test_few_step_levels(preset: str, pixels: int) -> None:
    levels = backbone(preset, pixels).sigmas(4)
    assert torch.allclose(levels, torch.tensor(FEW[preset, pixels]), atol=6e-7)  # six digits are written out


@pytest.mark.parametrize(("preset", "pixels", "steps"), TEACHER)
def test_teacher_levels(preset: str, pixels: int, steps: int) -> None:
    levels = backbone(preset, pixels).teacher_sigmas(steps)
    assert levels.shape == (steps + 1,) and levels[0] == 1 and levels[-1] == 0
    expected = torch.tensor(TEACHER[preset, pixels, steps])
    assert torch.allclose(levels[[1, 2, -2]], expected, atol=6e-7)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("pixels", [512, 1024])
def test_levels_are_the_raw_steps_shifted_once(pixels: int, steps: int) -> None:
    """Closed forms: SD3's factor 3; FLUX.1's μ linear between (256 tokens, 0.5) and (4096, 1.15); FLUX.2's μ linear in
    the steps between its lines for 10 and for 200 steps (diffusers' constants)."""
    raw, tokens = raw_few_steps(steps), (pixels // 16) ** 2
    linear = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    ten, many = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    empirical = ten + (many - ten) * (steps - 10) / 190
    expected = {
        "sd35m": shift_static(raw, 3.0),
        "flux1-dev": shift_static(raw, math.exp(linear)),
        "flux2-klein-9b": shift_static(raw, math.exp(empirical)),
    }
    for preset, levels in expected.items():
        assert torch.allclose(backbone(preset, pixels).sigmas(steps)[:-1], levels, atol=1e-6), preset
    if pixels == 512:
        assert math.isclose(linear, 0.63) and (steps != 4 or math.isclose(empirical, 2.0307, abs_tol=1e-4))


@pytest.mark.parametrize("preset", ["sd35m", "flux1-dev", "flux2-klein-4b"])
def test_a_shift_of_ones_own_moves_the_students_levels_and_no_others_and_is_published(preset: str) -> None:
    own, shifted = backbone(preset, 512), backbone(preset, 512)
    shifted.shift = 6.0
    levels = shifted.sigmas(4)
    assert torch.allclose(levels[:-1], torch.tensor([1.0, 18 / 19, 6 / 7, 2 / 3]), atol=1e-6) and levels[-1] == 0
    assert torch.equal(shifted.teacher_sigmas(28), own.teacher_sigmas(28))
    config = shifted.own_scheduler()
    if config is None:  # SD3's pipeline asks the scheduler for K steps, the others for the raw levels
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler_config(levels.tolist(), stochastic=False))
        scheduler.set_timesteps(4)
        assert torch.allclose(scheduler.sigmas, levels, atol=1e-6)
    else:
        assert (config["shift"], config["use_dynamic_shifting"]) == (6.0, False)
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
        assert torch.equal(evenly_spaced(scheduler, 4, mu=2.0), levels)
