"""Path conversions and golden schedules (against the scheduler of the installed diffusers)."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rtdmd.flow import path, schedule


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_velocity_determines_x0_and_noise():
    x0, noise, sigma = draw(5, 4, 3, 3), draw(5, 4, 3, 3, seed=1), torch.tensor([0.1, 0.5, 0.75, 0.9, 1.0]).double()
    x, v = path.interpolate(x0, noise, sigma), noise - x0
    torch.testing.assert_close(path.x0_from_velocity(x, v, sigma), x0, rtol=0, atol=1e-14)
    torch.testing.assert_close(path.noise_from_velocity(x, v, sigma), noise, rtol=0, atol=1e-14)


def test_interpolation_reaches_both_ends():
    x0, noise = draw(2, 4, 3, 3), draw(2, 4, 3, 3, seed=1)
    assert torch.equal(path.interpolate(x0, noise, torch.zeros(2)), x0)
    assert torch.equal(path.interpolate(x0, noise, torch.ones(2)), noise)


@pytest.mark.parametrize(("given", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_results_are_float32_at_least(given, expected):
    x, v = torch.ones(2, 4, 3, 3, dtype=given), torch.ones(2, 4, 3, 3, dtype=given)
    assert path.x0_from_velocity(x, v, torch.full((2,), 0.9)).dtype == expected


def test_sigma_must_have_one_level_a_sample():
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        path.x0_from_velocity(torch.ones(2, 4), torch.ones(2, 4), torch.tensor([0.5]))


def test_static_shift_three_gives_the_sd3_levels():
    levels = schedule.shift_static(schedule.raw_few_steps(4), 3.0)
    torch.testing.assert_close(levels, torch.tensor([1.0, 0.9, 0.75, 0.5]), rtol=0, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_static_shift_agrees_with_the_installed_diffusers(steps):
    raw = schedule.raw_few_steps(steps)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=raw.tolist())
    golden = scheduler.sigmas
    assert golden[-1] == 0
    torch.testing.assert_close(schedule.shift_static(raw, 3.0), golden[:-1], rtol=0, atol=2e-7)


def test_few_steps_refuse_zero():
    with pytest.raises(ValueError, match="at least 1"):
        schedule.raw_few_steps(0)
