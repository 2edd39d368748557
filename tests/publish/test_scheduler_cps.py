"""The scheduler class for diffusers' pipelines is our sampler's CPS step."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rtdmd.backbones import Conditioning
from rtdmd.backbones.sampling import rollout
from rtdmd.publish.card import cps_source
from rtdmd.publish.scheduler import scheduler_config
from rtdmd.publish.scheduler_cps import CPSScheduler

LEVELS = [1.0, 0.9, 0.75, 0.5, 0.0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler_config(LEVELS, stochastic=True)))
    return tmp_path


def _velocity(x: torch.Tensor, sigma: torch.Tensor, _: object = None) -> torch.Tensor:
    return torch.tanh(x * 1.3 + sigma.reshape(-1, 1, 1, 1))


def _chain(scheduler, x: torch.Tensor, steps: int = 4) -> torch.Tensor:
    """The loop of diffusers' pipelines."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(_velocity(x, (t / 1000).expand(len(x))), t, x, return_dict=False)[0]
    return x


def _ours(x: torch.Tensor, eta: float, noises: torch.Tensor) -> torch.Tensor:
    cond = Conditioning({"none": torch.zeros(len(x))})
    return rollout(_velocity, x, cond, torch.tensor(LEVELS), eta, noises)[-1]


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.9, 1.0])
def test_the_same_noise_gives_our_samplers_samples(folder, eta: float) -> None:
    scheduler = CPSScheduler.from_pretrained(folder)
    scheduler.eta, scheduler.generator = eta, torch.Generator().manual_seed(5)
    x = torch.randn(3, 4, 9, 9, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(5)
    noises = torch.stack([torch.randn(x.shape, generator=generator) for _ in range(3)])
    assert torch.allclose(_chain(scheduler, x), _ours(x, eta, noises), atol=1e-5)


def test_the_ends_are_diffusers_own_steps(folder) -> None:
    x = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1))
    for eta, stochastic in ((0.0, False), (1.0, True)):
        scheduler = CPSScheduler.from_pretrained(folder)
        scheduler.eta = eta
        own = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, stochastic_sampling=stochastic)
        torch.manual_seed(3)
        ours = _chain(scheduler, x)
        torch.manual_seed(3)
        assert torch.allclose(ours, _chain(own, x), atol=1e-5)


def test_the_printed_class_stands_alone_and_keeps_the_models_dtype(folder) -> None:
    names: dict = {"__name__": "card"}
    exec(cps_source(), names)
    scheduler = names["CPSScheduler"].from_pretrained(folder)
    assert "rtdmd" not in cps_source()
    scheduler.set_timesteps(4)
    v = torch.randn(1, 4, 2, 2).bfloat16()
    out = scheduler.step(v, scheduler.timesteps[0], v)
    assert out.prev_sample.dtype == torch.bfloat16
    assert scheduler.step_index == 1
