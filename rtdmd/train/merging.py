"""The linear layers of a transformer that carry adapters: as the base has them, and copies with an adapter merged in.

The public code merges stage one's adapter into the base in half precision, which rounds it, and trains a new one on
that. Here one base serves all roles, so the roles that want it merged get copies of the layers that carry adapters, and
of nothing else. A copy takes the layer's place as a module; no weight is ever changed, so graphs that were made keep
theirs, and a block that is computed again in the backward pass finds its own by the same switch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

Stack = tuple[str, ...]
PLAIN = ""  # the layers as the base has them, beside the names of merged adapters


class AdaptedLayers:
    """PEFT's layers of one transformer, and what stands below their adapters."""

    def __init__(self, layers: Sequence[BaseTunerLayer]) -> None:
        self.layers: list[Any] = list(layers)
        self.active: Stack = ()
        self._below: dict[str, list[nn.Linear]] = {PLAIN: [layer.get_base_layer() for layer in self.layers]}

    def split(self, stack: Stack) -> tuple[str, Stack]:
        """(the adapter of a stack that is merged, "" where none is; the adapters that are not)."""
        merged = next((name for name in stack if name in self._below), PLAIN)
        return merged, tuple(name for name in stack if name not in self._below)

    def below(self, stack: Stack) -> list[nn.Linear]:
        """The linear layers to which the adapters of a stack that are not merged are added."""
        return self._below[self.split(stack)[0]]

    def activate(self, stack: Stack) -> None:
        """Switch to a stack. PEFT's own switch also flips ``requires_grad``, and a parameter whose flag is off at
        backward time silently receives no gradient; here only the forward pass changes."""
        self.active = stack
        merged, above = self.split(stack)
        for layer in self.layers:
            layer._disable_adapters = not above
            if above:
                layer._active_adapter = list(above)
        if len(self._below) > 1:
            for layer, module in zip(self.layers, self._below[merged], strict=True):
                layer.base_layer = module

    @torch.no_grad()
    def merge(self, name: str) -> None:
        """Make the copies with one adapter merged in: added in float32, rounded once to the base's dtype."""
        copies: list[nn.Linear] = []
        for layer, plain in zip(self.layers, self._below[PLAIN], strict=True):
            merged: Any = copy.deepcopy(plain).requires_grad_(False)
            merged.weight.data = (merged.weight.float() + layer.get_delta_weight(name).float()).to(merged.weight.dtype)
            layer.add_module(f"merged_{name}", merged)  # so that it moves and is sharded with its block
            copies.append(merged)
        self._below[name] = copies

    def forget_plain(self) -> None:
        """Keep the layers as the base has them no longer: every role stands on merged ones."""
        self.activate(tuple(self._below)[-1:])
        del self._below[PLAIN]

    def restore(self) -> None:
        """Every layer that is kept has its place in the transformer again, so that it is found there."""
        if PLAIN in self._below:
            self.activate(())
