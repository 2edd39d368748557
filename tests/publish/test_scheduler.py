"""The published scheduler runs the trained levels when it is asked for K steps, and for nothing else."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rtdmd.common.errors import RtdmdError
from rtdmd.publish.scheduler import matching_shift, scheduler_config, shift_of


def _levels(shift: float, steps: int) -> list[float]:
    raw = [1 - i / steps for i in range(steps)]
    return [shift * r / (1 + (shift - 1) * r) for r in raw] + [0.0]


@pytest.mark.parametrize(
    ("shift", "steps"),
    [(3.0, 4), (3.0, 2), (3.0, 8), (1.0, 4), (5.0, 6), (3.0, 1), (0.5, 4), (0.5, 64), (15.0, 4), (15.0, 64)],
)
def test_default_steps_of_the_published_scheduler_are_the_trained_levels(tmp_path, shift, steps):
    levels = torch.tensor(_levels(shift, steps))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler_config(levels.tolist(), stochastic=True)))
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(steps)
    assert torch.allclose(scheduler.sigmas, levels, atol=1e-6)
    assert torch.allclose(scheduler.timesteps, 1000 * levels[:-1], atol=1e-3)
    assert scheduler.config.stochastic_sampling is True


def test_sd3s_own_scheduler_does_not_run_them():
    """Why the folder brings its own: diffusers' default spacing ends at another last level."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    assert scheduler.sigmas[-2] < 0.01
    assert _levels(3.0, 4)[:4] == pytest.approx([1.0, 0.9, 0.75, 0.5])


def test_shift_is_read_off_the_levels():
    assert shift_of(_levels(3.0, 4)) == pytest.approx(3.0)
    assert matching_shift(1.0, 4) == 1.0


def test_levels_that_it_cannot_run_are_an_error():
    with pytest.raises(RtdmdError, match="would run"):
        scheduler_config([1.0, 0.8, 0.75, 0.5, 0.0], stochastic=False)
