"""The sampler against closed forms, and its independence of the batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rtdmd.backbones import Conditioning
from rtdmd.backbones.sampling import ImageNoise, rollout, sample
from rtdmd.common.rng import normal

SHAPE = (2, 3, 3)
SIGMAS = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])


def gaussian_velocity(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
    """Exact velocity when the data distribution is N(m, 1), m per image: E[ε - x_0 | x_σ]."""
    s, mean = sigma.view(-1, 1, 1, 1), cond.tensors["mean"].view(-1, 1, 1, 1)
    variance = (1 - s) ** 2 + s**2
    return -mean + (2 * s - 1) / variance * (x - (1 - s) * mean)


def means(*values: float) -> Conditioning:
    return Conditioning({"mean": torch.tensor(values)})


def test_noise_is_named_by_prompt_and_image_not_by_batch() -> None:
    images = [(7, 0), (7, 1), (9, 0)]
    whole = ImageNoise(3, images, SHAPE)
    alone = ImageNoise(3, images[1:2], SHAPE)
    assert torch.equal(whole.initial()[1], alone.initial()[0])
    assert torch.equal(whole.transition(2)[1], alone.transition(2)[0])
    draws = [whole.initial()[0], whole.initial()[2], whole.transition(0)[0], whole.transition(1)[0]]
    draws.append(ImageNoise(4, images, SHAPE).initial()[0])
    assert len({tuple(draw.flatten().tolist()) for draw in draws}) == 5


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images, cond = [(7, 0), (7, 1), (9, 0)], means(0.0, 1.0, 2.0)
    whole = sample(gaussian_velocity, ImageNoise(0, images, SHAPE), cond, SIGMAS, 0.9)
    for i in range(3):
        alone = sample(gaussian_velocity, ImageNoise(0, images[i : i + 1], SHAPE), cond.index([i]), SIGMAS, 0.9)
        assert torch.equal(whole[i], alone[0])


def test_eta_zero_is_euler() -> None:
    x = ImageNoise(0, [(0, 0)], SHAPE).initial()
    cond, expected = means(0.5), x.clone()
    for sigma, tau in ((1.0, 0.9), (0.9, 0.75), (0.75, 0.5), (0.5, 0.0)):
        expected = expected + (tau - sigma) * gaussian_velocity(expected, torch.tensor([sigma]), cond)
    assert torch.allclose(
        sample(gaussian_velocity, ImageNoise(0, [(0, 0)], SHAPE), cond, SIGMAS, 0.0), expected, atol=1e-6
    )
    assert torch.allclose(rollout(gaussian_velocity, x, cond, SIGMAS, 0.0, None)[-1], expected, atol=1e-6)


def test_a_rollout_is_the_cps_recursion_and_its_last_step_takes_no_noise() -> None:
    x1, noises, eta = normal((1, *SHAPE), "x"), normal((3, 1, *SHAPE), "z"), 0.9
    cond, states = means(0.5), rollout(gaussian_velocity, x1, means(0.5), SIGMAS, eta, noises)
    assert len(states) == 5 and torch.equal(states[0], x1)
    for k in range(4):
        sigma, tau, x = SIGMAS[k], SIGMAS[k + 1], states[k]
        v = gaussian_velocity(x, sigma.expand(1), cond)
        clean, hat = x - sigma * v, x + (1 - sigma) * v
        expected = (1 - tau) * clean + tau * math.cos(eta * math.pi / 2) * hat
        if k < 3:
            expected = expected + tau * math.sin(eta * math.pi / 2) * noises[k]
        assert torch.allclose(states[k + 1], expected, atol=1e-5)


def test_one_step_needs_no_transition_noise() -> None:
    noise = ImageNoise(0, [(0, 0)], SHAPE)
    one = sample(gaussian_velocity, noise, means(0.5), torch.tensor([1.0, 0.0]), 0.9)
    assert torch.allclose(one, torch.full_like(one, 0.5), atol=1e-6)  # x̂_0 at σ = 1 is the mean


def test_many_euler_steps_draw_from_the_data_law() -> None:
    images = [(0, i) for i in range(400)]
    fine = torch.linspace(1, 0, 65)
    drawn = sample(gaussian_velocity, ImageNoise(1, images, SHAPE), means(*[2.0] * 400), fine, 0.0)
    assert abs(drawn.mean().item() - 2.0) < 4 / math.sqrt(400 * 18)
    assert abs(drawn.std().item() - 1.0) < 0.05


def test_gradients_flow_through_a_rollout_and_not_through_a_sample() -> None:
    scale = torch.tensor(1.0, requires_grad=True)

    def velocity(x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        return scale * gaussian_velocity(x, sigma, cond)

    states = rollout(velocity, normal((1, *SHAPE), "x"), means(0.5), SIGMAS, 0.9, normal((3, 1, *SHAPE), "z"))
    states[-1].sum().backward()
    assert scale.grad is not None and scale.grad != 0
    assert not sample(velocity, ImageNoise(0, [(0, 0)], SHAPE), means(0.5), SIGMAS, 0.9).requires_grad


def test_noise_must_be_given_where_eta_asks_for_it() -> None:
    with pytest.raises(ValueError, match="needs noises"):
        rollout(gaussian_velocity, normal((1, *SHAPE), "x"), means(0.5), SIGMAS, 0.9, None)
