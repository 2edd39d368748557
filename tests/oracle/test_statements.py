"""The rows of `rtdmd verify` hold, and each fails when its formula is replaced by a wrong one."""

import math

import pytest
import torch

from rtdmd.flow import ambient, cps, matching
from rtdmd.flow.path import expand, interpolate
from rtdmd.oracle import gradients, identities
from rtdmd.oracle.identities import LINEAR, QUADRATIC
from rtdmd.oracle.setting import Setting
from rtdmd.oracle.statements import STATEMENTS, Bound, check

EXACT = Setting()
QUICK = [s for s in STATEMENTS if s.name != "T8"]


@pytest.mark.parametrize("statement", QUICK, ids=lambda s: f"{s.name}-{s.claim}")
def test_statement_holds(statement):
    result = check(statement, EXACT)
    assert result.passed, f"{result.measured} against {result.limit}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_identities_hold_in_the_networks_precision(dtype):
    for statement in QUICK:
        if statement.name in ("T1", "T3", "T4"):
            assert check(statement, Setting(dtype=dtype)).passed, statement.claim


def bound_of(claim: str) -> float:
    """The limit that the named row is judged by."""
    return next(s for s in STATEMENTS if s.claim.startswith(claim)).bound.limit("float64")


# Mutations: (row, measured with a wrong formula).


def paper_v1_coefficients(s, t):
    return (1 - t) / (1 - s), (t - s) / (1 - s)


def target_without_rate(x_s, z, s, t):
    """β' = 1 as in plain flow matching."""
    return expand(-1 / (1 - s), x_s) * x_s + z


def target_with_wrong_sign(x_s, z, s, t):
    return ambient.ambient_target(-x_s, z, s, t)


def plain_target(x_s, z, s, t):
    """Plain flow matching, as if x_s were clean."""
    return z - x_s


def step_with_linear_noise(x, v, sigma, tau, eta, noise):
    """sqrt(1-η²), η instead of cos, sin with the noise of the mean kept: the squares no longer sum to one."""
    mean, std = cps.cps_mean_std(x, v, sigma, tau, eta)
    return mean + expand(std, x) * noise * 0.9


def step_towards_noise(x, v, sigma, tau, eta, noise):
    return cps.cps_step(x, v, sigma, tau, 1 - torch.as_tensor(eta), noise)


def projection_with_other_noise(x, v, t, s, eta, noise):
    return cps.cps_step(x, v, t, s, eta, noise + 0.01 * v)


def half_tilt(mixture):
    return identities.tilt(mixture, identities.BETA / 2)


def tilt_without_evidence(mixture):
    tilted = identities.tilt(mixture)
    return type(mixture)(mixture.weights, tilted.means, tilted.covariances)


MUTATIONS = {
    "T1 the paper's v1 β": (
        "ambient target",
        lambda: identities.ambient_is_velocity(EXACT, coefficients=paper_v1_coefficients),
    ),
    "T1 β' = 1": ("ambient target", lambda: identities.ambient_is_velocity(EXACT, target=target_without_rate)),
    "T1 sign": ("ambient target", lambda: identities.ambient_is_velocity(EXACT, target=target_with_wrong_sign)),
    "T1 plain target, published loss": (
        "so the velocity",
        lambda: identities.ambient_minimiser(EXACT, target=plain_target),
    ),
    "T1 plain target, inverse variance": (
        "... and the inverse",
        lambda: identities.ambient_minimiser(EXACT, target=plain_target, weighting="inverse_variance"),
    ),
    "T2 fixed η": (
        "Gaussian distribution",
        lambda: identities.gaussian_self_consistency(EXACT, eta=lambda r, t: torch.full_like(r, 0.9)),
    ),
    "T2 η* with r and t swapped": (
        "Gaussian distribution",
        lambda: identities.gaussian_self_consistency(EXACT, eta=lambda r, t: 1 - cps.eta_star(r, t)),
    ),
    "T2 posterior mean for posterior": (
        "mixture: the true",
        lambda: identities.mixture_self_consistency(EXACT, posterior=False),
    ),
    "T3 η reversed": ("CPS: η=0", lambda: identities.cps_algebra(EXACT, step=step_towards_noise)),
    "T3 lost noise": ("CPS from the true", lambda: identities.cps_marginals(EXACT, step=step_with_linear_noise)),
    "T4 k at s = 0": (
        "y_φ - y_ψ",
        lambda: identities.direction_is_score_difference(EXACT, factor=lambda s, t, eta: t**2 / (1 - t)),
    ),
    "T4 noise not shared": (
        "y_φ - y_ψ",
        lambda: identities.direction_is_score_difference(EXACT, project=projection_with_other_noise),
    ),
    "T4 loss of the wrong size": (
        "its gradient",
        lambda: identities.direction_is_kl_gradient(EXACT, loss=lambda x, g: 1.1 * matching.dmd_loss(x, g)),
    ),
    "T5 half the tilt": ("the tilted distribution", lambda: identities.tilted_density(EXACT, tilted=half_tilt)),
    "T5 weights not tilted": (
        "the tilted distribution",
        lambda: identities.tilted_density(EXACT, tilted=tilt_without_evidence),
    ),
    "T5 gradient of half the tilt": ("tilted KL", lambda: identities.tilted_kl_gradient(EXACT, tilted=half_tilt)),
    "T7 group mean baseline": (
        "SubGRPO",
        lambda: gradients.policy_gradient_bias(EXACT, trained_steps=2, shared=True, baseline="group_mean").chi_square,
    ),
    "T7 factor K/M": (
        "SubGRPO",
        lambda: (
            gradients.policy_gradient_bias(EXACT, trained_steps=2, shared=True, factor=lambda k, m: k / m).chi_square
        ),
    ),
    "T6 density without the half": (
        "policy steps",
        lambda: (
            gradients.policy_gradient_bias(EXACT, log_prob=lambda x, m, s: 2 * cps.gaussian_log_prob(x, m, s)).relative
        ),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_formula_fails_its_row(name):
    claim, measure = MUTATIONS[name]
    assert measure() > 2 * bound_of(claim)


def test_projection_noise_that_differs_by_network_breaks_the_identity_not_a_common_one():
    shifted = identities.direction_is_score_difference(
        EXACT, project=lambda x, v, t, s, eta, noise: cps.cps_step(x, v, t, s, eta, noise + 7)
    )
    assert shifted < 1e-10


def test_bounds_reject_nan_and_read_their_precision():
    bound = Bound({"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-2})
    assert bound.holds(1e-6, "float32") and not bound.holds(1e-6, "float64")
    assert not Bound(1.0).holds(math.nan, "float64")
    assert Bound(low=0.1).text("float64") == "> 0.1" and bound.text("bfloat16") == "< 0.01"


def test_reward_and_tilt_agree():
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    linear = LINEAR[0] + 2 * LINEAR[1]
    quadratic = QUADRATIC[0][0] + 4 * QUADRATIC[0][1] + 4 * QUADRATIC[1][1]
    assert float(identities.reward(x)) == pytest.approx(linear - quadratic / 2)


def test_a_setting_draws_the_same_numbers_in_every_precision():
    single, double = Setting(dtype="float32").normal((5,), "x"), EXACT.normal((5,), "x")
    assert torch.equal(single, double.float())
    assert not torch.equal(double, Setting(seed=1).normal((5,), "x"))
    sigma = torch.full((5,), 0.5)
    assert torch.equal(interpolate(single, single, sigma), single)
