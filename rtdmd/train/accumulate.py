"""Sums of gradients over micro-batches and processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rtdmd.train.adapters import Learner
    from rtdmd.train.distributed.ranks import Ranks


def micro_batches(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size``."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def add_value(values: dict[str, float], name: str, value: float) -> None:
    """values[name] += value, from 0."""
    values[name] = values.get(name, 0.0) + value


@dataclass
class Gradients:
    """Sums of one term's gradients over micro-batches, one tensor for each trained parameter."""

    learner: Learner
    total: list[Tensor] | None = None
    term: str = ""  # the loss, for messages

    def add(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Add the gradient of a scalar loss; a parameter that the loss does not reach is an error."""
        new = torch.autograd.grad(loss, self.learner.parameters, retain_graph=retain_graph)
        self.total = list(new) if self.total is None else [a + b for a, b in zip(self.total, new, strict=True)]

    def add_scaled(self, other: Gradients, factor: float) -> None:
        """Add a multiple of another term's sum."""
        if other.total is not None:
            new = [factor * g for g in other.total]
            self.total = new if self.total is None else [a + b for a, b in zip(self.total, new, strict=True)]

    def all_reduce(self, ranks: Ranks) -> None:
        """Add up what all processes have. A process to which no sample fell counts as zeros."""
        if ranks.world > 1 and any(ranks.gather(self.total is not None)):
            if self.total is None:
                self.total = [torch.zeros_like(parameter) for parameter in self.learner.parameters]
            ranks.sum_(self.total)

    def norm(self, since: list[Tensor] | None = None) -> float:
        """Euclidean norm over all parameters of what was added (after the total was ``since``), 0 where nothing was."""
        if self.total is None:
            return 0.0
        if since is None:
            return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.total))).item()
        norms = [torch.linalg.vector_norm(now - then) for now, then in zip(self.total, since, strict=True)]
        return torch.linalg.vector_norm(torch.stack(norms)).item()

    def step(self) -> float:
        """One update of the learner with the sum; its norm. FloatingPointError where it is not finite."""
        if self.total is None:
            raise FloatingPointError("there is no gradient: no sample was computed")
        return self.learner.step(self.total, self.term)


def combine(terms: Mapping[str, tuple[float, Gradients]], scaling: str) -> tuple[list[Tensor], dict[str, float]]:
    """Weighted sum of the terms' gradients, each brought to norm 1 first where ``scaling`` is ``unit_norm``; and their
    norms. A term of weight 0 or without gradient is left out. FloatingPointError naming role, term and tensor where a
    norm is not finite."""
    norms = {name: gradients.norm() for name, (_, gradients) in terms.items()}
    for name, norm in norms.items():
        if not math.isfinite(norm):
            _, gradients = terms[name]
            raise FloatingPointError(gradients.learner.gradient_fault(name, norm, gradients.total or ()))
    out: list[Tensor] | None = None
    for name, (weight, gradients) in terms.items():
        if gradients.total is None or weight == 0 or norms[name] == 0:
            continue
        factor = weight / norms[name] if scaling == "unit_norm" else weight
        scaled = [factor * g for g in gradients.total]
        out = scaled if out is None else [a + b for a, b in zip(out, scaled, strict=True)]
    if out is None:
        raise FloatingPointError("no loss term has a gradient: every advantage is zero and no other term is weighted")
    return out, {f"grad_{name}": value for name, value in norms.items()}
