"""Sums of gradients over micro-batches, which loss terms of the generator share one, and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rtdmd.train.distributed.ranks import Ranks
    from rtdmd.train.learner import Learner

TERMS = ("policy", "matching", "backprop", "reference_kl", "nft")
"""The generator's loss terms of stage two."""


@dataclass
class Gradients:
    """Sums of one term's gradients over micro-batches, one tensor for each trained parameter."""

    learner: Learner
    total: list[Tensor] | None = None
    term: str = ""  # the loss, for messages

    def add(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Add the gradient of a scalar loss; a parameter that the loss does not reach is an error."""
        self.pull([loss], [torch.ones_like(loss)], retain_graph)

    def pull(self, outputs: Sequence[Tensor], pulls: Sequence[Tensor], retain_graph: bool = False) -> None:
        """Add what the gradients ``pulls`` at ``outputs`` are at the parameters, by one backward pass; a parameter that
        none of the outputs reaches is an error."""
        new = torch.autograd.grad(outputs, self.learner.parameters, pulls, retain_graph=retain_graph)
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


@dataclass
class Terms:
    """The generator's loss terms of an epoch, each with the sum that its gradients are added to.

    Terms that need no norm of their own share a sum, each multiplied by its weight; where they also go through the same
    pass of the generator, their gradients meet at its output and go back through it once.
    """

    sums: dict[str, Gradients]  # by the names of the terms that share it, joined by +
    place: dict[str, str]  # term -> its sum
    weights: Mapping[str, float]
    matching_rewards: Tensor | None = None  # (N,), matching as a reward of each image, with `matching_path: reward`

    @staticmethod
    def of(learner: Learner, weights: Mapping[str, float], shared: Sequence[Sequence[str]] = ()) -> Terms:
        """``shared``: the groups of terms with one sum; every other term has its own."""
        place = {name: name for name in TERMS}
        place |= {name: "+".join(names) for names in shared for name in names}
        return Terms({name: Gradients(learner) for name in place.values()}, place, weights)

    def __getitem__(self, term: str) -> Gradients:
        """The sum that a term's gradients are in."""
        return self.sums[self.place[term]]

    def alone(self, term: str) -> bool:
        """Whether a term's sum has no other term in it, so that its norm is the term's."""
        return self.place[term] == term

    def add(self, parts: Mapping[str, tuple[Tensor, Tensor | None]]) -> None:
        """Add the gradients of terms that go through the same pass: of each an output of it, and the gradient there
        (None: the output is the loss). One backward pass for each sum; the graph is gone after the last one."""
        groups: dict[str, list[str]] = {}
        for term in parts:
            groups.setdefault(self.place[term], []).append(term)
        left = len(groups)
        for name, terms in groups.items():
            left -= 1
            pulls = []
            for term in terms:
                output, pull = parts[term]
                pull = torch.ones_like(output) if pull is None else pull
                pulls.append(pull if self.alone(term) else self.weights[term] * pull)
            self.sums[name].pull([parts[term][0] for term in terms], pulls, retain_graph=left > 0)

    def empty(self) -> Terms:
        """The same terms and who shares a sum, without gradients."""
        sums = {name: Gradients(own.learner) for name, own in self.sums.items()}
        return Terms(sums, self.place, self.weights, self.matching_rewards)

    def all_reduce(self, ranks: Ranks) -> None:
        """Add up what all processes have."""
        for own in self.sums.values():
            own.all_reduce(ranks)

    def weighted(self, parts: int) -> dict[str, tuple[float, Gradients]]:
        """Every sum and its weight over ``parts``: its term's, or 1 where the terms in it have theirs already."""
        return {name: (self.weights.get(name, 1.0) / parts, own) for name, own in self.sums.items()}


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
