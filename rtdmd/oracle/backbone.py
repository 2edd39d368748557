"""The oracle behind the protocols of a real model: an exact teacher as a `Backbone`, the oracle's tilt as a `Reward`.

The transformer's velocity is the teacher's exact one plus a small network whose last layer is zero at first. A fresh
copy therefore is the teacher, as a fresh LoRA is, and the roles of `rtdmd.train` (mode: full) train copies of it
unchanged. Latents are (B, 2, 1, 1); a prompt is the index of a mixture, as text.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rtdmd.backbones.protocol import Conditioning, LoraKind
from rtdmd.flow.schedule import raw_few_steps, shift_static
from rtdmd.oracle.identities import reward
from rtdmd.oracle.mixture import Mixture

SHIFT = 3.0


class OracleTransformer(nn.Module):
    """v(x, σ, prompt) + residual: three SiLU layers over (x, features of σ, one-hot prompt), zero at first.

    ``steps`` > 0: the residual also reads which of so many sampler steps made the sample (one-hot, zero where untold).
    """

    def __init__(self, mixture: Mixture, width: int = 64, seed: int = 0, steps: int = 0) -> None:
        super().__init__()
        self.mixture = mixture
        self.width = width
        self.steps = steps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            last = nn.Linear(width, 2)
            self.residual = nn.Sequential(
                nn.Linear(2 + 5 + mixture.prompts + steps, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                last,
            )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, sigma: Tensor, prompt: Tensor, step: Tensor | None = None) -> Tensor:
        """Velocity (B, 2, 1, 1) at x (B, 2, 1, 1), sigma (B,), prompt (B,); step (B,) where the network is told it."""
        flat = x.flatten(1)
        angle = sigma[:, None] * math.pi
        waves = [sigma[:, None], torch.sin(angle), torch.cos(angle), torch.sin(2 * angle), torch.cos(2 * angle)]
        kinds = [nn.functional.one_hot(prompt, self.mixture.prompts).to(flat.dtype)]
        if self.steps:
            told = flat.new_zeros(len(x), self.steps)
            kinds.append(told if step is None else nn.functional.one_hot(step, self.steps).to(flat.dtype))
        features = torch.cat([flat, *waves, *kinds], 1)
        return self.mixture.velocity(x, sigma, prompt) + self.residual(features).reshape(x.shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OracleTransformer":
        """A copy with its own network and the same distribution."""
        twin = OracleTransformer(self.mixture, self.width, steps=self.steps)
        twin.load_state_dict(self.state_dict())
        return twin


class OracleBackbone:
    """`rtdmd.backbones.protocol.Backbone` on a mixture: no text encoder, no decoder, exact velocities."""

    family = "oracle"

    def __init__(
        self, mixture: Mixture, width: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32, steps: int = 0
    ) -> None:
        self.mixture = mixture
        self.dtype = dtype
        self.device = mixture.means.device
        self.transformer: nn.Module = OracleTransformer(mixture, width, seed, steps).to(self.device)
        self.student: nn.Module = self.transformer

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts "0", "1", ... are indices of mixtures."""
        return Conditioning({"prompt": torch.tensor([int(prompt) for prompt in prompts], device=self.device)})

    def latent_shape(self) -> tuple[int, int, int]:
        """(2, 1, 1)."""
        return 2, 1, 1

    def sigmas(self, num_steps: int) -> Tensor:
        """SD3's few-step levels: 1, 0.9, 0.75, 0.5, 0 for four steps."""
        return torch.cat([shift_static(raw_few_steps(num_steps), SHIFT), torch.zeros(1)])

    def teacher_sigmas(self, num_steps: int) -> Tensor:
        """The same rule with many steps."""
        return self.sigmas(num_steps)

    def velocity(
        self,
        transformer: nn.Module,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        *,
        guidance: float = 1.0,
        null: Conditioning | None = None,
    ) -> Tensor:
        """Velocity of the teacher or of a trained copy. The oracle knows no guidance: anything but 1 is a
        ValueError."""
        if guidance != 1.0:
            raise ValueError(f"the oracle has no unconditional distribution; guidance must be 1, got {guidance}")
        step = cond.tensors.get("step")
        prompt = cond.tensors["prompt"].expand(len(x))
        velocity: Tensor = transformer(x.to(self.dtype).float(), sigma.float(), prompt, step)
        return velocity.to(self.dtype).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Latents are the images: (B, 2, 1, 1)."""
        return latents

    def encode_images(self, images: Tensor) -> Tensor:
        return images

    def lora_targets(self, kind: LoraKind) -> list[str]:
        """The linear layers of the residual network."""
        return [f"residual.{i}" for i in (0, 2, 4, 6)]


class OracleReward:
    """`rtdmd.rewards.protocol.Reward`: scale times a formula, the oracle's quadratic r(x) unless another is given."""

    name = "oracle"
    differentiable = True
    needs_metadata = False
    range = (-math.inf, math.inf)

    def __init__(self, scale: float = 1.0, formula: Callable[[Tensor], Tensor] = reward) -> None:
        self.scale = scale
        self.formula = formula

    def identity(self) -> dict[str, str | float]:
        """The formula's name and its scale."""
        return {"formula": self.formula.__name__, "scale": self.scale}

    def to(self, device: torch.device) -> None:
        """A formula has no weights."""

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Any]) -> Tensor:
        """(B,) float32 rewards of (B, 2, 1, 1) samples; the prompts do not matter."""
        return self.scale * self.formula(images)
