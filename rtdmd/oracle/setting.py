"""Where and how precisely a statement is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rtdmd.common.rng import key_seed
from rtdmd.oracle.mixture import Mixture

Precision = Literal["float64", "float32", "bfloat16"]


@dataclass(frozen=True)
class Setting:
    """A device, the precision of the network, and a seed.

    The network (here an exact velocity) reads samples and answers in `dtype`, as a real transformer would; levels and
    equations stay in float32, or in float64 when `dtype` is float64.
    """

    device: str = "cpu"
    dtype: Precision = "float64"
    seed: int = 0

    @property
    def network(self) -> torch.dtype:
        """What the network reads and writes."""
        return {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    @property
    def real(self) -> torch.dtype:
        """What levels, coefficients and losses are computed in."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def generator(self, *key: str | int) -> torch.Generator:
        """A generator on the device for a named draw."""
        return torch.Generator(self.device).manual_seed(key_seed(self.seed, *key))

    def normal(self, shape: Sequence[int], *key: str | int) -> Tensor:
        """Standard normals in `real`, drawn in float64 so that every precision sees the same draw."""
        return torch.randn(tuple(shape), generator=self.generator(*key), device=self.device, dtype=torch.float64).to(
            self.real
        )

    def values(self, numbers: Sequence[float]) -> Tensor:
        """Numbers (levels, parameters) in `real` on the device."""
        return torch.tensor(numbers, dtype=torch.float64, device=self.device).to(self.real)

    def level(self, sigma: float, n: int) -> Tensor:
        """One level for n samples."""
        return self.values([sigma]).expand(n)

    def prompts(self, n: int, mixture: Mixture) -> Tensor:
        """Prompts 0, 1, ..., 0, 1, ... for n samples."""
        return torch.arange(n, device=self.device) % mixture.prompts

    def velocity(self, mixture: Mixture, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """The exact velocity as a network of this precision gives it: input and output rounded, result in `real`."""
        return mixture.velocity(x.to(self.network), sigma, prompt).to(self.real)
