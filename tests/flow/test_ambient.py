"""Renoising, the ambient target (T1) and its weights."""

import pytest
import torch

from rtdmd.flow import ambient
from rtdmd.flow.path import expand, interpolate
from rtdmd.oracle.mixture import Mixture, gaussian, ring

STARTS = torch.tensor([0.0, 0.0, 0.5, 0.75, 0.9, 0.967]).double()
TIMES = torch.tensor([0.02, 0.98, 0.6, 0.98, 0.91, 0.98]).double()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ambient_gap(mixture: Mixture, renoise_coefficients) -> float:
    """Relative error of the target fed with E[x_s | x_t], E[z | x_t] against the exact velocity at x_t (T1).

    Tweedie: E[α x_s | x_t] = x_t + β² score(x_t), E[z | x_t] = -β score(x_t), with the exact score of the noised
    distribution.
    """
    x_t, prompt = draw(6, 2), torch.tensor([0, 0, 0, 0, 0, 0])
    alpha, beta = (expand(c, x_t) for c in renoise_coefficients(STARTS, TIMES))
    score = mixture.score(x_t, TIMES, prompt)
    u = ambient.ambient_target((x_t + beta**2 * score) / alpha, -beta * score, STARTS, TIMES)
    v = mixture.velocity(x_t, TIMES, prompt)
    return float((u - v).norm() / v.norm())


@pytest.mark.parametrize("mixture", [gaussian(torch.tensor([0.5, -1.0]), 0.3 * torch.eye(2)), ring()])
def test_target_fed_with_conditional_means_is_the_velocity(mixture):
    assert ambient_gap(mixture, ambient.renoise_coefficients) < 1e-10


def test_the_papers_v1_beta_fails_the_same_check():
    wrong = lambda s, t: ((1 - t) / (1 - s), (t - s) / (1 - s))  # noqa: E731
    assert ambient_gap(ring(), wrong) > 1e-2


def test_renoising_lands_on_the_law_of_level_t():
    """Variance of x_t for unit-variance noise in x_s: α² s² + β² = t², and α (1-s) = 1-t."""
    alpha, beta = ambient.renoise_coefficients(STARTS, TIMES)
    torch.testing.assert_close(alpha**2 * STARTS**2 + beta**2, TIMES**2, rtol=0, atol=1e-14)
    torch.testing.assert_close(alpha * (1 - STARTS), 1 - TIMES, rtol=0, atol=1e-15)


def test_target_is_the_time_derivative_of_the_path():
    x_s, z, h = draw(6, 2), draw(6, 2, seed=1), 1e-6
    slope = (ambient.renoise(x_s, z, STARTS, TIMES + h) - ambient.renoise(x_s, z, STARTS, TIMES - h)) / (2 * h)
    torch.testing.assert_close(ambient.ambient_target(x_s, z, STARTS, TIMES), slope, rtol=1e-6, atol=1e-6)


def test_at_s_zero_it_is_plain_flow_matching():
    x0, z, t = draw(4, 2), draw(4, 2, seed=1), torch.tensor([0.02, 0.5, 0.98, 1.0]).double()
    zero = torch.zeros(4).double()
    torch.testing.assert_close(ambient.renoise(x0, z, zero, t), interpolate(x0, z, t), rtol=0, atol=1e-15)
    torch.testing.assert_close(ambient.ambient_target(x0, z, zero, t), z - x0, rtol=0, atol=1e-14)


def test_float32_coefficients_have_no_cancellation_near_s():
    s = torch.linspace(0.5, 0.99, 1000)
    t = s + 1e-4
    exact = ambient.renoise_coefficients(s.double(), t.double())[1]
    torch.testing.assert_close(ambient.renoise_coefficients(s, t)[1].double(), exact, rtol=1e-6, atol=0)
    naive = torch.sqrt(t**2 - ((1 - t) / (1 - s)) ** 2 * s**2)
    assert ((naive.double() - exact) / exact).abs().max() > 1e-5


def test_levels_in_bfloat16_would_move_alpha_from_two_thirds_to_three_quarters():
    s, t = torch.tensor([0.967]), torch.tensor([0.978])
    right = float(ambient.renoise_coefficients(s, t)[0])
    wrong = float(ambient.renoise_coefficients(s.bfloat16(), t.bfloat16())[0])
    assert right == pytest.approx(0.6667, abs=1e-3)
    assert abs(wrong - right) > 0.08


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_time_is_above_start_for_every_start(dtype):
    s = torch.linspace(0, 0.995, 4000).to(dtype).repeat(3)
    u = torch.cat([torch.zeros(4000), torch.full((4000,), 0.5), torch.full((4000,), 1 - 2.0**-24)]).to(torch.float32)
    t = ambient.draw_renoise_time(u, s, 0.01, 0.02, 0.98)
    gap = t.double() - s.double()
    assert bool((gap >= torch.minimum(torch.tensor(0.01), (1 - s.double()) / 2) - 1e-6).all())
    assert float(t.max()) < 1
    assert bool(torch.isfinite(ambient.ambient_target(torch.ones(12000, 2), torch.ones(12000, 2), s, t)).all())


def test_drawn_times_are_the_published_law_without_its_atoms():
    u = torch.linspace(0, 1, 10001).double()[:-1]
    for start, low, high in [(0.0, 0.02, 0.98), (0.5, 0.51, 0.98), (0.9, 0.91, 0.98)]:
        t = ambient.draw_renoise_time(u, torch.full_like(u, start), 0.01, 0.02, 0.98)
        torch.testing.assert_close(t, low + u * (high - low), rtol=0, atol=1e-12)
    first_flux2 = ambient.draw_renoise_time(u, torch.full_like(u, 0.967), 0.01, 0.02, 0.98)
    assert first_flux2.unique().numel() == u.numel()
    assert float(first_flux2.min()) == pytest.approx(0.977) and float(first_flux2.max()) == pytest.approx(
        0.9885, abs=1e-4
    )
    published = (0.977 + u * 0.023).clamp(0.02, 0.98)
    assert float((published == 0.98).double().mean()) == pytest.approx(0.87, abs=0.01)


def test_the_published_times_are_clamped_and_have_atoms():
    u = torch.linspace(0, 1, 10001).double()[:-1]
    at_zero = ambient.clamped_renoise_time(u, torch.zeros_like(u), 0.01, 0.02, 0.98)
    torch.testing.assert_close(at_zero, (0.01 + 0.99 * u).clamp(0.02, 0.98), rtol=0, atol=1e-12)
    first_flux2 = ambient.clamped_renoise_time(u, torch.full_like(u, 0.967), 0.01, 0.02, 0.98)
    assert float((first_flux2 == 0.98).double().mean()) == pytest.approx(20 / 23, abs=1e-3)
    with pytest.raises(ValueError, match=r"must lie in \[0, 0\.98\), got 0\.9800"):
        ambient.clamped_renoise_time(torch.zeros(1), torch.tensor([0.98]), 0.01, 0.02, 0.98)


@pytest.mark.parametrize("s", [-0.1, 0.9995, 1.0, float("nan")])
def test_impossible_starts_are_refused(s):
    with pytest.raises(ValueError, match="start levels"):
        ambient.draw_renoise_time(torch.zeros(1), torch.tensor([s]), 0.01, 0.02, 0.98)


def test_target_variance_matches_a_gaussian_simulation():
    """Residual variance of the linear regression of u on x_t: unit-variance data, so the regression is E[u | x_t]."""
    n = 200_000
    for s, t, expected in [(0.0, 0.5, 2.0), (0.5, 0.75, 3.6), (0.9, 0.91, 472.0)]:
        level, time = torch.full((n,), s).double(), torch.full((n,), t).double()
        x_s, z = interpolate(draw(n, 1), draw(n, 1, seed=1), level), draw(n, 1, seed=2)
        x_t, u = ambient.renoise(x_s, z, level, time), ambient.ambient_target(x_s, z, level, time)
        residual = (u - x_t * (u * x_t).mean() / (x_t**2).mean()).var()
        assert float(ambient.target_variance(level[:1], time[:1])) == pytest.approx(expected, rel=0.01)
        assert float(residual) == pytest.approx(expected, rel=0.02)


def test_published_loss_is_weight_times_scaled_difference():
    v, u = draw(6, 2), draw(6, 2, seed=1)
    beta = ambient.renoise_coefficients(STARTS, TIMES)[1]
    for clamp_max in (10.0, 1.0):
        published = (1 / beta**2).clamp(0, clamp_max) * ((beta[:, None] * (v - u)) ** 2).mean(1)
        loss = ambient.ambient_loss(v, u, STARTS, TIMES, "clamp", clamp_max)
        torch.testing.assert_close(loss, published, rtol=1e-12, atol=0)


def test_inverse_variance_weights_are_of_order_one_and_balance_the_targets():
    zero, t = torch.zeros(99).double(), torch.linspace(0.01, 0.99, 99).double()
    weight = ambient.ambient_weight(zero, t, "inverse_variance", 10.0)
    assert float(weight.min()) >= 0.5 and float(weight.max()) <= 1
    noisy = ambient.ambient_weight(torch.tensor([0.9]), torch.tensor([0.91]), "inverse_variance", 10.0)
    assert float(noisy) == pytest.approx(1 / 472, rel=0.01)


def test_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="inverse_variance"):
        ambient.ambient_weight(torch.zeros(1), torch.ones(1), "snr", 10.0)
