"""The table of `rtdmd verify`: what the method claims, what is measured, and the bound that decides.

A bound depends on the precision where rounding is what is measured: float64 proves the formula, float32 and bfloat16
show what the precision costs.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rtdmd.flow import cps
from rtdmd.oracle import gradients, identities, reinforcement, training
from rtdmd.oracle.setting import Precision, Setting


@dataclass(frozen=True)
class Bound:
    """`low` <= measured <= `high`; high is one number or one for each precision."""

    high: float | dict[Precision, float] = float("inf")
    low: float = 0.0

    def limit(self, dtype: Precision) -> float:
        """The upper limit at this precision."""
        return self.high[dtype] if isinstance(self.high, dict) else self.high

    def holds(self, value: float, dtype: Precision) -> bool:
        """False for NaN too."""
        return self.low <= value <= self.limit(dtype)

    def text(self, dtype: Precision) -> str:
        high = self.limit(dtype)
        return f"> {self.low:.2g}" if high == float("inf") else f"< {high:.2g}"


@dataclass(frozen=True)
class Statement:
    """One row: its name in shared/design and the docs (T1..T8), the equation, and how it is measured."""

    name: str
    claim: str
    equation: str
    measure: Callable[[Setting], float]
    bound: Bound


@dataclass(frozen=True)
class Result:
    """One measured row."""

    statement: Statement
    measured: float
    limit: str
    passed: bool
    seconds: float


def check(statement: Statement, setting: Setting) -> Result:
    start = time.perf_counter()
    measured = statement.measure(setting)
    passed = statement.bound.holds(measured, setting.dtype)
    return Result(statement, measured, statement.bound.text(setting.dtype), passed, time.perf_counter() - start)


def check_all(setting: Setting, names: tuple[str, ...] = ()) -> Iterator[Result]:
    """Measure all statements (or those named T1, T2, ...) in order, one result at a time."""
    for statement in STATEMENTS:
        if not names or statement.name in names:
            yield check(statement, setting)


def _fixed_eta(r: Tensor, t: Tensor) -> Tensor:
    """The published kernel: η = 0.9 whatever the interval."""
    return torch.full_like(r, 0.9)


def _sharing(setting: Setting) -> float:
    """Largest |measured - closed form| variance ratio over which steps are trained and whether x_1 is shared."""
    cases = [(steps, initial) for steps in ((0, 1), (0, 2), (1, 2)) for initial in (False, True)]
    pairs = [gradients.sharing_variance(setting, steps, initial=initial) for steps, initial in cases]
    return max(abs(measured - exact) for measured, exact in pairs)


def _dmd2_ratio(setting: Setting) -> float:
    """DMD2's distance to the teacher's distribution over AC-DMD's; both trained with the same draws."""
    return training.stage_one_distance(setting, renoise_from="data") / training.stage_one_distance(setting)


def _step_aware_ratio(setting: Setting) -> float:
    """DMD2's distance with a fake score that is told the step, over that without."""
    told = training.stage_one_distance(setting, renoise_from="data", step_aware=True)
    return told / training.stage_one_distance(setting, renoise_from="data")


def _identity(float64: float, float32: float, bfloat16: float) -> Bound:
    return Bound({"float64": float64, "float32": float32, "bfloat16": bfloat16})


STANDARD_ERRORS = Bound(4.5)

STATEMENTS: tuple[Statement, ...] = (
    Statement(
        "T1",
        "ambient target of E[x_s|x_t], E[z|x_t] is the velocity",
        "u = α'x_s + β'z, β² = t²-α²s²",
        identities.ambient_is_velocity,
        _identity(1e-10, 1e-5, 2e-2),
    ),
    Statement(
        "T1",
        "so the velocity minimises the published loss",
        "∇E w|βv-βu|² = 0, standard errors",
        identities.ambient_minimiser,
        STANDARD_ERRORS,
    ),
    Statement(
        "T1",
        "... and the inverse-variance loss",
        "∇E |v-u|²/Var(u|x_t) = 0, standard errors",
        lambda setting: identities.ambient_minimiser(setting, weighting="inverse_variance"),
        STANDARD_ERRORS,
    ),
    Statement(
        "T2",
        "Gaussian distribution: CPS with η* keeps the posterior mean",
        "E[h(x_r)|x_t] = h(x_t), cos(η*π/2) = (1-t)r/((1-r)t)",
        identities.gaussian_self_consistency,
        _identity(1e-12, 1e-5, 2e-2),
    ),
    Statement(
        "T2",
        "mixture: the true reverse kernel keeps it",
        "E[h(x_r)|x_t] = h(x_t), (r, t) = (0.5, 0.6)",
        identities.mixture_self_consistency,
        _identity(3e-4, 3e-4, 1e-2),
    ),
    Statement(
        "T2",
        "mixture: the published kernel (η = 0.9) does not",
        "|E[h(x_r)|x_t] - h(x_t)|, (r, t) = (0.5, 0.6)",
        lambda setting: identities.mixture_self_consistency(setting, eta=_fixed_eta, posterior=False),
        Bound(low=1e-2),
    ),
    Statement(
        "T3",
        "CPS: η=0 Euler, η=1 renoises, τ=0 deterministic",
        "x_τ = (1-τ)x̂_0 + τcos(ηπ/2)ε̂ + τsin(ηπ/2)z",
        identities.cps_algebra,
        _identity(1e-10, 1e-5, 3e-2),
    ),
    Statement(
        "T3",
        "CPS from the true (x_0, ε) keeps the marginal",
        "E exp(iω·x_τ), standard errors",
        identities.cps_marginals,
        STANDARD_ERRORS,
    ),
    Statement(
        "T4",
        "y_φ - y_ψ is k times the score difference",
        "k = [(1-s)t - s c(1-t)] t/(1-t)",
        identities.direction_is_score_difference,
        _identity(1e-10, 1e-4, 1e-1),
    ),
    Statement(
        "T4",
        "its gradient is κ_s ∇KL(q_t‖p_t)",
        "κ_s = k(1-s)/(1-t), standard errors",
        identities.direction_is_kl_gradient,
        STANDARD_ERRORS,
    ),
    Statement(
        "T5",
        "the tilted distribution is p exp(βr)/Z",
        "log p̃ - log p - βr = const",
        identities.tilted_density,
        Bound(1e-9),
    ),
    Statement("T5", "tilted KL splits", "∇KL(q‖p̃) = ∇KL(q‖p) - β∇E r", identities.tilted_kl_gradient, Bound(1e-9)),
    Statement(
        "T6",
        "policy steps + pathwise last step = ∇E r",
        "Σ A∇log p + ∇r(x̂_0), relative error",
        lambda setting: gradients.policy_gradient_bias(setting).relative,
        Bound(0.03),
    ),
    Statement(
        "T6",
        "... within its standard errors",
        "Hotelling T²/df",
        lambda setting: gradients.policy_gradient_bias(setting).chi_square,
        Bound(2.0),
    ),
    Statement(
        "T6",
        "the published log-density is not the gradient",
        "-mean(x-μ)² for -|x-μ|²/2ρ², relative error",
        lambda setting: gradients.policy_gradient_bias(setting, log_prob=_published_log_prob).relative,
        Bound(low=0.1),
    ),
    Statement(
        "T7",
        "SubGRPO with (K-1)/M and leave-one-out is unbiased",
        "M = 2, shared noise, Hotelling T²/df",
        lambda setting: gradients.policy_gradient_bias(setting, trained_steps=2, shared=True).chi_square,
        Bound(2.0),
    ),
    Statement(
        "T7",
        "without the factor it is not",
        "factor 1, Hotelling T²/df",
        lambda setting: (
            gradients.policy_gradient_bias(
                setting, trained_steps=2, shared=True, factor=lambda steps, trained: 1.0
            ).chi_square
        ),
        Bound(low=10.0),
    ),
    Statement("T7", "what sharing saves, linear chain, D = 128", "|Var ratio - closed form|", _sharing, Bound(0.08)),
    Statement(
        "T8",
        "stage one's own iteration reaches the teacher's distribution",
        "mean energy distance (few-step teacher: 0.13)",
        training.stage_one_distance,
        Bound(0.025),
    ),
    Statement(
        "T8",
        "DMD2 with the same budget is further from it",
        "its distance over AC-DMD's, same seed",
        _dmd2_ratio,
        Bound(low=1.5),
    ),
    Statement(
        "T8",
        "... because its fake score is not told the step",
        "distance of DMD2 told the step over DMD2's",
        _step_aware_ratio,
        Bound(0.7),
    ),
    Statement(
        "T8",
        "matching as a reward = matching through the chain",
        "Σ A∇log p + last step = ∇F, relative error",
        reinforcement.matching_as_a_reward,
        Bound(0.04),
    ),
    Statement(
        "T8",
        "stage two holds the fixed point: through the chain",
        "|E r gained / (D w_r/w_m) bᵀΛ⁻¹b - 1|",
        lambda setting: abs(reinforcement.reached(setting, "whole_chain").reward - 1),
        Bound(0.04),
    ),
    Statement(
        "T8",
        "... and its variance",
        "|tr Cov / tr V - 1|",
        lambda setting: abs(reinforcement.reached(setting, "whole_chain").variance - 1),
        Bound(0.15),
    ),
    Statement(
        "T8",
        "stage two holds the fixed point: matching as a reward",
        "|E r gained / (D w_r/w_m) bᵀΛ⁻¹b - 1|",
        lambda setting: abs(reinforcement.reached(setting, "reward").reward - 1),
        Bound(0.04),
    ),
    Statement(
        "T8",
        "... and its variance",
        "|tr Cov / tr V - 1|",
        lambda setting: abs(reinforcement.reached(setting, "reward").variance - 1),
        Bound(0.15),
    ),
    Statement(
        "T8",
        "matching on the last step only leaves it",
        "energy distance to the fixed point (held: 0.0001)",
        lambda setting: reinforcement.reached(setting, "last_step").distance,
        Bound(low=0.2),
    ),
)


def _published_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The public code's surrogate, in the place of the density."""
    return cps.published_log_prob(x, mean)
