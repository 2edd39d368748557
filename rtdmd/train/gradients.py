"""Sums of gradients over micro-batches, which loss terms of the generator share one, and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.train.distributed.ranks import Ranks
    from rtdmd.train.learner import Learner

TERMS = ("policy", "matching", "backprop", "reference_kl", "nft")
"""The generator's loss terms of stage two."""
OPTIONAL = ("awm", "surrogate")
"""Terms of compared methods alone: without a weight they have no sum, and no column in curves.csv."""


@dataclass
class Gradients:
    """Sums of one term's gradients over micro-batches, one tensor for each trained parameter."""

    learner: Learner
    total: list[Tensor] | None = None
    term: str = ""  # the loss, for messages

    def add(
        self,
        outputs: Tensor | Sequence[Tensor],
        grad_outputs: Sequence[Tensor] | None = None,
        retain_graph: bool = False,
    ) -> None:
        """Add what the gradients ``grad_outputs`` at ``outputs`` are at the parameters, by one backward pass; None: the
        output is a scalar loss. A parameter that no output reaches is an error."""
        new = torch.autograd.grad(outputs, self.learner.parameters, grad_outputs, retain_graph=retain_graph)
        self.total = list(new) if self.total is None else [a + b for a, b in zip(self.total, new, strict=True)]

    def add_scaled(self, other: Gradients, factor: float) -> None:
        """Add a multiple of another term's sum."""
        if other.total is not None:
            new = [factor * g for g in other.total]
            self.total = new if self.total is None else [a + b for a, b in zip(self.total, new, strict=True)]

    def all_reduce(self, ranks: Ranks) -> None:
        """Add up what all processes have. A process to which no sample fell counts as zeros."""
        if ranks.world > 1 and any(ranks.all_gather_object(self.total is not None)):
            if self.total is None:
                self.total = [torch.zeros_like(parameter) for parameter in self.learner.parameters]
            ranks.all_reduce_tensors(self.total)

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

    learner: Learner
    weights: Mapping[str, float]
    shared: Mapping[str, str] = field(default_factory=dict)  # term -> the sum that it shares; any other has its own
    matching_rewards: Tensor | None = None  # (N,), matching as a reward of each image, with `matching_path: reward`

    def __post_init__(self) -> None:
        present = [*TERMS, *(term for term in OPTIONAL if self.weights.get(term, 0.0) > 0)]
        self.sums = {self.shared.get(term, term): Gradients(self.learner) for term in present}

    def add(self, ends: Mapping[str, Tensor], grad_outputs: Mapping[str, Tensor] | None = None) -> None:
        """Add the gradients of terms that go through the same pass: ``ends`` has an output of it for each,
        ``grad_outputs`` the gradient there; None: the ends are losses. One backward pass for each sum; the graph is
        gone after the last one."""
        grad_outputs = grad_outputs or {term: torch.ones_like(end) for term, end in ends.items()}
        groups: dict[str, list[str]] = {}
        for term in ends:
            groups.setdefault(self.shared.get(term, term), []).append(term)
        left = len(groups)
        for name, terms in groups.items():
            left -= 1
            scaled = [grad_outputs[term] if term == name else self.weights[term] * grad_outputs[term] for term in terms]
            self.sums[name].add([ends[term] for term in terms], scaled, retain_graph=left > 0)

    def reduced(self, ranks: Ranks, parts: int) -> dict[str, tuple[float, Gradients]]:
        """Every sum, added up over all processes, and its weight over ``parts``: its term's, or 1 where the terms in it
        have theirs already."""
        for own in self.sums.values():
            own.all_reduce(ranks)
        return {name: (self.weights.get(name, 1.0) / parts, own) for name, own in self.sums.items()}


def shared_terms(p: TrainRtdmdParams) -> dict[str, str]:
    """The sums that loss terms share, by term: of terms that can meet in a pass of the generator and need no norm of
    their own, so that one backward pass serves them all. Those of the last step meet, unless matching goes through the
    whole chain, and those of the trained steps; all of them where matching has a part in both."""
    if p.gradient_scaling == "unit_norm":
        return {}
    trained = ("policy", "reference_kl")
    last = ("matching", "backprop")
    groups: list[tuple[str, ...]] = [trained, last]
    if p.matching_path == "reward":
        groups = [trained + last]
    elif p.matching_path == "whole_chain":
        groups = [trained]
    shared: dict[str, str] = {}
    for group in groups:
        present = [term for term in group if getattr(p.weights, term) > 0]
        if len(present) > 1:
            shared |= dict.fromkeys(present, "+".join(present))
    return shared


def combine(terms: Mapping[str, tuple[float, Gradients]], scaling: str) -> tuple[list[Tensor], dict[str, float]]:
    """Weighted sum of the terms' gradients, each brought to norm 1 first where ``scaling`` is ``unit_norm``; and their
    norms. A term of weight 0 or without gradient is left out; zeros where none is left, as in an epoch of the policy
    gradient alone whose every advantage is zero: `require_signal` ends a run of many such epochs. FloatingPointError
    naming role, term and tensor where a norm is not finite."""
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
        _, any_of_them = next(iter(terms.values()))
        out = [torch.zeros_like(parameter) for parameter in any_of_them.learner.parameters]
    return out, {f"grad_{name}": value for name, value in norms.items()}
