"""T1 to T5: the identities behind stage one and the tilted target, measured against closed forms.

Each function returns one number, the largest error. What it measures are the very functions of `rtdmd.flow`; they are
keyword arguments so that the tests can put a wrong formula in their place and see the number grow.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rtdmd.flow import ambient, cps, matching
from rtdmd.flow.path import expand, interpolate, x0_from_velocity
from rtdmd.oracle.mixture import Mixture, gaussian, hermite, mixture_nodes, relative_entropy, ring
from rtdmd.oracle.setting import Setting

Formula = Callable[..., Any]
"""A function of `rtdmd.flow`, or a mutation of it."""

STARTS = (0.0, 0.0, 0.0, 0.5, 0.5, 0.75, 0.9, 0.967)
TIMES = (0.02, 0.5, 0.98, 0.51, 0.98, 0.9, 0.91, 0.98)


def relative_error(measured: Tensor, exact: Tensor) -> float:
    """|measured - exact| / |exact| over all elements."""
    return float((measured.double() - exact.double()).norm() / exact.double().norm())


def _teacher(setting: Setting) -> Mixture:
    return ring().to(setting.device)


def _other(setting: Setting) -> Mixture:
    """A generator's distribution: near the teacher's, not equal to it."""
    return (
        ring(radius=1.2, variance=0.15).affine(torch.tensor([0.2, -0.1], dtype=torch.float64), 1.0).to(setting.device)
    )


def ambient_is_velocity(
    setting: Setting, *, target: Formula = ambient.ambient_target, coefficients: Formula = ambient.renoise_coefficients
) -> float:
    """T1. u(E[x_s | x_t], E[z | x_t]) against the exact velocity of the noised generator distribution, relative, 64
    points per (s, t).

    The conditional means come from the distribution of x_s as a mixture of its own, observed through x_t = α x_s + β z.
    """
    mixture = _other(setting)
    worst = 0.0
    for s, t in zip(STARTS, TIMES, strict=True):
        level = setting.level(s, 64)
        time = setting.level(t, 64)
        prompt = setting.prompts(64, mixture)
        x_t = mixture.mean()[prompt].to(setting.real) * (1 - t) + setting.normal((64, 2), "T1", str((s, t)))
        alpha, beta = coefficients(level, time)
        x_s, z = mixture.noised(s).conditional_means(x_t.to(setting.network).double(), alpha, beta, prompt)
        u = target(x_s.to(setting.real), z.to(setting.real), level, time)
        worst = max(worst, relative_error(u, mixture.velocity(x_t.double(), time, prompt)))
    return worst


def ambient_minimiser(
    setting: Setting, *, target: Formula = ambient.ambient_target, weighting: ambient.Weighting = "clamp"
) -> float:
    """T1. Gradient of the sampled ambient loss at the true velocity, in standard errors (largest over two parameters).

    Around v* + θ_1 + θ_2 v* the expected gradient is zero exactly when E[u | x_t] = v*, whatever the weighting.
    """
    mixture = _other(setting)
    n = 100_000
    prompt = setting.prompts(n, mixture)
    starts = torch.tensor(STARTS, device=setting.device).to(setting.real)[torch.arange(n, device=setting.device) % 8]
    uniform = torch.rand(n, generator=setting.generator("T1", "u"), device=setting.device).to(setting.real)
    t = ambient.draw_renoise_time(uniform, starts, 0.01, 0.02, 0.98)
    x0 = mixture.sample(prompt, setting.generator("T1", "x0")).to(setting.real)
    x_s = interpolate(x0, setting.normal((n, 2), "T1", "epsilon"), starts)
    z = setting.normal((n, 2), "T1", "z")
    x_t = ambient.renoise(x_s, z, starts, t)
    u = target(x_s, z, starts, t)
    v = setting.velocity(mixture, x_t, t, prompt)
    theta = torch.zeros(n, 2, dtype=setting.real, device=setting.device, requires_grad=True)
    ambient.ambient_loss(v + theta[:, :1] + theta[:, 1:] * v, u, starts, t, weighting, 10.0).sum().backward()
    return largest_z(theta.grad)


def largest_z(samples: Tensor | None) -> float:
    """Largest |mean| / standard error over the columns of independent samples (N, P)."""
    if samples is None:
        raise ValueError("no gradient reached the parameters")
    samples = samples.double()
    return float((samples.mean(0).abs() / samples.std(0) * len(samples) ** 0.5).max())


def gaussian_self_consistency(setting: Setting, *, eta: Formula = cps.eta_star) -> float:
    """T2. |E[h(x_r, r) | x_t] - h(x_t, t)| for a Gaussian distribution and CPS with η*: h is affine, so E[h] is h at
    the mean."""
    mixture = gaussian(torch.tensor([0.7, -0.3]), torch.tensor([[0.5, 0.2], [0.2, 0.9]])).to(setting.device)
    r = setting.values([0.0, 0.2, 0.5, 0.5, 0.88])
    t = setting.values([0.3, 0.9, 0.6, 0.98, 0.9])
    x = setting.normal((5, 2), "T2")
    prompt = setting.prompts(5, mixture)
    v = setting.velocity(mixture, x, t, prompt)
    mean, _ = cps.cps_mean_std(x, v, t, r, eta(r, t))
    h_r = x0_from_velocity(mean, setting.velocity(mixture, mean, r, prompt), r)
    return float((h_r - x0_from_velocity(x, v, t)).abs().max())


def mixture_self_consistency(
    setting: Setting, *, eta: Formula = cps.eta_star, posterior: bool = True, r: float = 0.5, t: float = 0.6
) -> float:
    """T2. The two-sample estimator's expectation, as a root: |E[h(x_r, r) | x_t] - h(x_t, t)| / sqrt(d), largest of 6
    points.

    posterior: x_0 ~ p(x_0 | x_t), then CPS with η*, which is the true reverse kernel; otherwise CPS from the
    posterior mean. The expectation is a quadrature over x_0 (component by component) and over the transition's noise.
    """
    mixture = _teacher(setting)
    worst = 0.0
    prompts = setting.prompts(6, mixture)
    starts = setting.normal((6, 2), "T2", "start") * t + (1 - t) * mixture.mean()[prompts].to(setting.real)
    noise, noise_weights = (part.to(setting.device) for part in hermite(10, 2))
    low = setting.level(r, 1)
    high = setting.level(t, 1)
    for i in range(6):
        x = starts[i : i + 1]
        prompt = prompts[i : i + 1]
        if posterior:
            x0, weights = mixture.posterior_nodes(x, high, prompt, order=10)
        else:
            x0 = mixture.posterior_mean(x.double(), high, prompt)
            weights = torch.ones(1).double().to(x.device)
        n = len(x0) * len(noise)
        weights = (weights[:, None] * noise_weights).reshape(n)
        v = (x - x0.repeat_interleave(len(noise), 0).to(setting.real)) / t
        z = noise.repeat(len(x0), 1).to(setting.real)
        x_r = cps.cps_step(x.expand(n, 2), v, high.expand(n), low.expand(n), eta(low, high).expand(n), z)
        v_r = setting.velocity(mixture, x_r, low.expand(n), prompt.expand(n))
        h_r = x0_from_velocity(x_r, v_r, low.expand(n))
        h_t = x0_from_velocity(x, setting.velocity(mixture, x, high, prompt), high)
        expected = (weights[:, None] * h_r.double()).sum(0, keepdim=True)
        squared = ambient.consistency_two_sample(h_t.double(), expected, expected)
        worst = max(worst, float(squared.sqrt()))
    return worst


def cps_algebra(setting: Setting, *, step: Formula = cps.cps_step) -> float:
    """T3. η = 0 is Euler, η = 1 renoises x_0, τ = 0 returns x_0: largest error of the three."""
    x0, noise, z = (setting.normal((64, 2), "T3", name) for name in ("x0", "noise", "z"))
    sigma = torch.linspace(0.1, 1, 64, dtype=torch.float64, device=setting.device).to(setting.real)
    tau = sigma * 0.7
    x = interpolate(x0, noise, sigma)
    v = (noise - x0).to(setting.network).to(setting.real)
    errors = (
        step(x, v, sigma, tau, 0.0, z) - (x + expand(tau - sigma, x) * v),
        step(x, v, sigma, tau, 1.0, z) - interpolate(x0, z, tau),
        step(x, v, sigma, torch.zeros_like(tau), 0.9, z) - x0,
    )
    return max(float(error.abs().max()) for error in errors)


def cps_marginals(setting: Setting, *, step: Formula = cps.cps_step, eta: float = 0.9) -> float:
    """T3. CPS from the true (x_0, ε): empirical characteristic function of x_τ against the exact one, largest
    z-score."""
    mixture = _teacher(setting)
    n = 200_000
    tau = 0.5
    prompt = torch.zeros(n, dtype=torch.long, device=setting.device)
    x0 = mixture.sample(prompt, setting.generator("T3", "sample")).to(setting.real)
    noise = setting.normal((n, 2), "T3", "epsilon")
    z = setting.normal((n, 2), "T3", "fresh")
    sigma = setting.level(0.75, n)
    tau_level = setting.level(tau, n)
    x = step(interpolate(x0, noise, sigma), noise - x0, sigma, tau_level, eta, z).double()
    target = mixture.noised(tau)
    worst = 0.0
    for omega in setting.normal((8, 2), "T3", "omega").double() * 1.5:
        phase = x @ omega
        spread = torch.einsum("d,jde,e->j", omega, target.covariances[0], omega)
        exact = (target.weights[0] * torch.exp(1j * (target.means[0] @ omega) - spread / 2)).sum()
        parts = torch.stack([torch.cos(phase) - exact.real, torch.sin(phase) - exact.imag], 1)
        worst = max(worst, largest_z(parts))
    return worst


def direction_is_score_difference(
    setting: Setting, *, project: Formula = cps.cps_step, factor: Formula = matching.score_factor
) -> float:
    """T4. y_φ - y_ψ against k (score_φ - score_ψ), relative, for η in {0, 0.9, 1} and every (s, t)."""
    teacher = _teacher(setting)
    fake = _other(setting)
    worst = 0.0
    s = setting.values(STARTS)
    t = setting.values(TIMES)
    prompt = setting.prompts(8, teacher)
    n = 8
    x_t = setting.normal((n, 2), "T4", "x")
    noise = setting.normal((n, 2), "T4", "noise")
    scores = fake.score(x_t.double(), t, prompt) - teacher.score(x_t.double(), t, prompt)
    for eta in (0.0, 0.9, 1.0):
        y_fake, y_teacher = (
            project(x_t, setting.velocity(mixture, x_t, t, prompt), t, s, eta, noise) for mixture in (fake, teacher)
        )
        g = matching.dmd_direction(y_fake, y_teacher, x_t, normalise=False)
        worst = max(worst, relative_error(g, expand(factor(s, t, eta), x_t) * scores))
    return worst


def direction_is_kl_gradient(
    setting: Setting, *, loss: Formula = matching.dmd_loss, s: float = 0.5, t: float = 0.7
) -> float:
    """T4. Gradient of the matching loss of a generator x_0 = shift + scale w against κ_s ∇KL(q_t || p_t), in standard
    errors.

    The exact gradient is a central difference of the KL by quadrature; κ_s = k (1-s)/(1-t).
    """
    teacher = _teacher(setting)
    base = _other(setting)
    n = 100_000
    prompt = torch.zeros(n, dtype=torch.long, device=setting.device)
    level = setting.level(s, n)
    time = setting.level(t, n)
    theta = torch.zeros(n, 3, dtype=setting.real, device=setting.device, requires_grad=True)
    w = base.sample(prompt, setting.generator("T4", "w")).to(setting.real)
    x_s = interpolate(theta[:, :2] + (1 + theta[:, 2:]) * w, setting.normal((n, 2), "T4", "epsilon"), level)
    x_t = ambient.renoise(x_s.detach(), setting.normal((n, 2), "T4", "z"), level, time)
    noise = setting.normal((n, 2), "T4", "projection")
    y_fake, y_teacher = (
        cps.cps_step(x_t, setting.velocity(mixture, x_t, time, prompt), time, level, 0.9, noise)
        for mixture in (base, teacher)
    )
    g = matching.dmd_direction(y_fake, y_teacher, x_s, normalise=False)
    (2 * loss(x_s, g)).sum().backward()  # the loss is a mean over two dimensions
    kappa = float(matching.score_factor(level[:1], time[:1], 0.9)) * (1 - s) / (1 - t)
    exact = kappa * affine_gradient(lambda q: float(relative_entropy(q.noised(t), teacher.noised(t))), base)
    if theta.grad is None:
        raise ValueError("no gradient reached the generator")
    return largest_z(theta.grad.double() - exact.to(setting.device))


def affine_gradient(functional: Callable[[Mixture], float], base: Mixture, step: float = 1e-4) -> Tensor:
    """Central differences (3,) of a functional of the distribution shift + scale x_0, at shift = 0 (two numbers), scale
    = 1."""
    gradient = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        ends = []
        for sign in (1.0, -1.0):
            move = torch.zeros(3, dtype=torch.float64)
            move[i] = sign * step
            ends.append(functional(base.affine(move[:2].to(base.means.device), 1 + float(move[2]))))
        gradient[i] = (ends[0] - ends[1]) / (2 * step)
    return gradient


BETA = 0.7
LINEAR = (0.8, -0.5)
QUADRATIC = ((0.6, 0.2), (0.2, 0.9))
"""The oracle's tilt: r(x) = LINEAR·x - ½ xᵀ QUADRATIC x, times BETA."""


def reward(x: Tensor) -> Tensor:
    """r(x) (B,) of samples (B, ...) with two numbers each."""
    flat = x.flatten(1)
    linear, quadratic = (torch.tensor(part, dtype=x.dtype, device=x.device) for part in (LINEAR, QUADRATIC))
    return flat @ linear - torch.einsum("bd,de,be->b", flat, quadratic, flat) / 2


def tilt(mixture: Mixture, beta: float = BETA) -> Mixture:
    """p exp(β r) / Z of the oracle's reward."""
    linear, quadratic = (
        torch.tensor(part, dtype=torch.float64, device=mixture.means.device) for part in (LINEAR, QUADRATIC)
    )
    return mixture.tilted(linear, quadratic, beta)


def tilted_density(setting: Setting, *, tilted: Formula = tilt) -> float:
    """T5. Spread of log p̃ - log p - β r over points, which must be one constant (-log Z) for each prompt."""
    teacher = _teacher(setting)
    tilt_law = tilted(teacher)
    x = setting.normal((99, 2), "T5").double() * 2
    prompt = setting.prompts(99, teacher)
    zero = torch.zeros(99, dtype=torch.float64, device=setting.device)
    constant = tilt_law.log_density(x, zero, prompt) - teacher.log_density(x, zero, prompt) - BETA * reward(x)
    return max(float(constant[prompt == p].max() - constant[prompt == p].min()) for p in range(teacher.prompts))


def tilted_kl_gradient(setting: Setting, *, tilted: Formula = tilt) -> float:
    """T5. ∇KL(q || p̃) against ∇KL(q || p) - β ∇E_q r over the parameters of an affine generator, relative."""
    teacher = _teacher(setting)
    base = _other(setting)

    def mean_reward(q: Mixture) -> float:
        nodes, weights = mixture_nodes(q, 40)
        return float((weights * reward(nodes)).sum())

    left = affine_gradient(lambda q: float(relative_entropy(q, tilted(teacher))), base)
    right = affine_gradient(lambda q: float(relative_entropy(q, teacher)), base) - BETA * affine_gradient(
        mean_reward, base
    )
    return relative_error(left, right)
