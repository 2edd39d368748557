"""Several LoRA adapters on one base, stacked one on the other, as ONE adapter of the summed rank.

With A (r, in), B (out, r) and scale = alpha / r, the adapters add ``sum_i scale_i B_i A_i`` to a base weight.
Concatenating the rows of A and the columns of ``scale B`` gives the same sum in one product; the composed adapter has
scale 1 (alpha = rank), so a loader that overlooks the alpha still applies it in the right strength.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

A = ".lora_A.weight"
B = ".lora_B.weight"


@dataclass(frozen=True)
class Adapter:
    """Tensors ``<module>.lora_A.weight`` (r, in) and ``<module>.lora_B.weight`` (out, r), relative to the
    transformer."""

    tensors: dict[str, Tensor]
    rank: int
    alpha: float
    config: Mapping[str, Any] | None = None  # LoraConfig as its file tells it: what PEFT itself would make of it

    def modules(self) -> list[str]:
        """Names of the adapted modules, sorted."""
        return sorted(key.removesuffix(A) for key in self.tensors if key.endswith(A))

    def shape(self, module: str) -> tuple[int, int]:
        """(out, in) of the weight that the module's factors belong to."""
        return self.tensors[module + B].shape[0], self.tensors[module + A].shape[1]

    def delta(self, module: str) -> Tensor:
        """What the adapter adds to the module's weight, (out, in), computed in float32."""
        return self.alpha / self.rank * self.tensors[module + B].float() @ self.tensors[module + A].float()


def compose(adapters: Sequence[Adapter]) -> Adapter:
    """The sum of the adapters as one of rank ``sum r_i`` and scale 1; a module that an adapter lacks gets zeros in its
    place."""
    modules = sorted({module for adapter in adapters for module in adapter.modules()})
    tensors = {}
    for module in modules:
        parts = [_parts(adapter, module, adapters) for adapter in adapters]
        tensors[module + A] = torch.cat([a for a, _ in parts], dim=0).contiguous()
        tensors[module + B] = torch.cat([b for _, b in parts], dim=1).contiguous()
    rank = sum(adapter.rank for adapter in adapters)
    return Adapter(tensors, rank=rank, alpha=float(rank))


def _parts(adapter: Adapter, module: str, adapters: Sequence[Adapter]) -> tuple[Tensor, Tensor]:
    """A (r, in) and scale B (out, r) of one adapter, in float32."""
    if module + A in adapter.tensors:
        scale = adapter.alpha / adapter.rank
        return adapter.tensors[module + A].float(), scale * adapter.tensors[module + B].float()
    other = next(a for a in adapters if module + A in a.tensors)
    inner = other.tensors[module + A].shape[1]
    outer = other.tensors[module + B].shape[0]
    return torch.zeros(adapter.rank, inner), torch.zeros(outer, adapter.rank)
