"""Coefficients-preserving sampling (CPS, arXiv 2509.05952) for diffusers' pipelines, at any stochasticity eta.

diffusers' FlowMatchEulerDiscreteScheduler takes Euler steps (eta = 0) or draws all noise anew (``stochastic_sampling``,
eta = 1); nothing between. This class changes its ``step`` and nothing else, so it reads the same configuration and runs
the same levels. What follows this docstring is printed on every model card: who pastes it needs neither this package
nor `trust_remote_code`. Hence it uses nothing of ours.
"""

import math
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor


class CPSScheduler(FlowMatchEulerDiscreteScheduler):
    """x_tau = (1 - tau) x0 + tau (cos(a) noise + sin(a) fresh), a = eta pi/2; the last step gives x0."""

    eta = 0.9  # 0: Euler steps, 1: all noise drawn anew
    generator = None  # of the fresh noise; None: torch's own (pipelines do not hand theirs to the scheduler)

    def step(
        self, model_output: Any, timestep: Any, sample: Any, generator: Any = None, return_dict: bool = True
    ) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma = self.sigmas[self.step_index]
        tau = self.sigmas[self.step_index + 1]
        x = sample.float()
        v = model_output.float()
        angle = self.eta * math.pi / 2
        fresh = randn_tensor(x.shape, generator=generator or self.generator, device=x.device)
        noise = math.cos(angle) * (x + (1 - sigma) * v) + math.sin(angle) * fresh
        x = ((1 - tau) * (x - sigma * v) + tau * noise).to(model_output.dtype)
        self._step_index += 1
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=x) if return_dict else (x,)
