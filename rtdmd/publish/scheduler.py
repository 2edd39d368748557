"""A scheduler configuration that makes plain diffusers run the trained sigmas when asked for K steps.

The few-step sigmas are the raw steps 1, 1 - 1/K, ..., 1/K shifted by the backbone's factor s: ``s r / (1 + (s - 1)
r)``. With its own defaults FlowMatchEulerDiscreteScheduler does not run them: it spaces K steps down to its smallest
sigma (for K = 4: 1, 0.857, 0.601, 0.009 instead of 1, 0.9, 0.75, 0.5). But it can stretch a schedule to end at
``shift_terminal``, and both schedules are Moebius images of equal steps, so one other shift makes them the same
schedule, at every step: see ``matching_shift``. Nobody needs to pass sigmas, and so nobody can pass them to be shifted
twice.
"""

from __future__ import annotations

from typing import Any

from rtdmd.common.errors import RtdmdError

TOLERANCE = 1e-6
TRAIN_TIMESTEPS = 1000


def matching_shift(shift: float, steps: int) -> float:
    """The shift h with which the stretched default schedule of ``steps`` equals the few-step schedule of factor
    ``shift``.

    With raw step r = 1 - i/K: 1 - sigma_i = (i/K) / (s - (s-1) i/K), proportional to i / (1 - c i), c = (s-1) / (s K).
    The default schedule is u_i = 1 - i d, d = (1 - m)/(K-1), shifted by h: 1 - sigma_i proportional to
    i / (1 - d (h-1)/h i). Hence (h-1)/h = c/d. The smallest sigma m is itself a shifted one, m = h e / (1 + (h-1) e)
    with e = 1/1000, so 1 - m = (1 - e)/(1 + (h-1) e), and (h-1)/h (1-e)/(1+(h-1)e) = c (K-1) =: q is a quadratic in a
    = h - 1: q e a^2 + (q (1 + e) - (1 - e)) a + q = 0, whose smaller root is the wanted one.
    """
    e = 1.0 / TRAIN_TIMESTEPS
    q = (shift - 1) * (steps - 1) / (shift * steps)
    middle = q * (1 + e) - (1 - e)
    discriminant = middle**2 - 4 * q * q * e
    if discriminant < 0:
        raise RtdmdError(f"no scheduler setting reproduces {steps} steps with shift {shift}; change model.num_steps")
    return 1 + 2 * q / (-middle + discriminant**0.5)


def shift_of(sigmas: list[float]) -> float:
    """The factor s of a few-step schedule (K + 1, ending in 0), from its last level before 0: sigma = s r / (1 + (s -
    1) r), r = 1/K."""
    r = 1 / (len(sigmas) - 1)
    sigma = sigmas[-2]
    return sigma * (1 - r) / (r * (1 - sigma))


def scheduler_config(sigmas: list[float], stochastic: bool) -> dict[str, Any]:
    """FlowMatchEulerDiscreteScheduler's configuration that runs ``sigmas`` (K + 1, ending in 0) for
    num_inference_steps = K.

    stochastic: re-noise the predicted clean latents at each step (CPS with eta = 1) instead of the Euler step (eta =
    0). Raises RtdmdError when the scheduler, asked, gives other sigmas than these by more than 1e-6.
    """
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    steps = len(sigmas) - 1
    scheduler: Any = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        shift=matching_shift(shift_of(sigmas), steps) if steps > 1 else 1.0,
        shift_terminal=sigmas[-2] if steps > 1 else None,
        stochastic_sampling=stochastic,
    )
    scheduler.set_timesteps(steps)
    worst = (scheduler.sigmas - torch.tensor(sigmas)).abs().max().item()
    if worst > TOLERANCE:
        raise RtdmdError(f"the published scheduler would run {scheduler.sigmas.tolist()}, not the trained {sigmas}")
    config = {key: scheduler.config[key] for key in sorted(scheduler.config) if not key.startswith("_")}
    return {"_class_name": type(scheduler).__name__, **config}
