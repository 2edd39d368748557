"""What learns: the parameters of one role with their AdamW and the moving average of them that is delivered; sums of
their gradients over micro-batches; which of the generator's loss terms share a sum, and the terms' weighted sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rtdmd.common.errors import NonFiniteError
from rtdmd.train.engine import checkpoint as checkpoints

if TYPE_CHECKING:
    from rtdmd.config import OptimizerParams
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.train.distributed.ranks import Ranks

TERMS = ("policy", "matching", "backprop", "reference_kl", "nft")
"""The generator's loss terms of stage two."""
OPTIONAL = ("awm", "surrogate")
"""Terms of compared methods alone: without a weight they have no sum, and no column in curves.csv."""


def ema_warmup_decay(updates: int, decay: float) -> float:
    """min((1 + n) / (10 + n), decay): what an average keeps after n updates, so that its start is soon forgotten."""
    return min((1 + updates) / (10 + updates), decay)


class EMA:
    """Exponential moving average of an adapter's parameters; holds those tensors only."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.tensors = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """average <- decay * average + (1 - decay) * parameter; ``decay``: of this update, in place of its own."""
        kept = self.decay if decay is None else decay
        torch._foreach_lerp_(self.tensors, [p.detach() for p in self.parameters], 1 - kept)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average with the live parameters (twice is the identity)."""
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(tensor)
            tensor.copy_(kept)


@dataclass
class Learner:
    """The trained parameters of one role, their AdamW, and optionally their moving average."""

    parameters: list[nn.Parameter]
    optimizer: torch.optim.AdamW
    lr: float
    warmup: int
    max_grad_norm: float
    ema: EMA | None = None
    updates: int = 0
    lr_decay: tuple[float, int] = (0.0, 0)
    role: str = "model"  # how messages call it
    names: Sequence[str] = ()  # of the parameters, for messages; their numbers where there are none

    @staticmethod
    def adamw(
        parameters: Sequence[nn.Parameter],
        settings: OptimizerParams,
        *,
        warmup: int = 0,
        lr_decay: tuple[float, int] = (0.0, 0),
        ema: EMA | None = None,
    ) -> Learner:
        """AdamW over an explicit parameter list; fused kernels stay off, since their bytes differ between machines.

        ``warmup``: updates over which the rate rises; ``lr_decay``: fraction of the run, at its end, over which it
        decays linearly to 0, and the run's updates.
        """
        owned = list(parameters)
        optimizer = torch.optim.AdamW(
            owned,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=False,
        )
        return Learner(owned, optimizer, settings.lr, warmup, settings.max_grad_norm, ema, 0, lr_decay)

    def named(self, role: str, names: Sequence[str] = ()) -> Learner:
        """The same, with what messages call it and its parameters."""
        self.role = role
        self.names = names
        return self

    def step(self, gradients: Sequence[Tensor] | None, term: str = "") -> float:
        """One clipped update from the given gradients; returns their norm before clipping. Raises FloatingPointError
        where there are none or the norm is not finite (the parameters are then untouched); ``term``: the loss, for its
        message."""
        if gradients is None:
            raise FloatingPointError("there is no gradient: no sample was computed")
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise FloatingPointError(self.gradient_fault(term, norm.item(), gradients))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grads_with_norm_(self.parameters, self.max_grad_norm, norm)
        self.updates += 1
        # AdamW's rate at this update (1 the first): linear warm-up, then constant, then linear decay.
        share, total = self.lr_decay
        rise = self.updates / self.warmup if self.warmup else 1.0
        left = (total - self.updates + 1) / (share * total) if share else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, rise, left)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def gradient_fault(self, term: str, norm: float, gradients: Sequence[Tensor]) -> str:
        """What to say of a gradient whose norm is not finite: role, term, and the first tensor at fault."""
        of = f" of {term}" if term else ""
        odd = [self.tensor_name(i) for i, gradient in enumerate(gradients) if not torch.isfinite(gradient).all()]
        where = f"first in {odd[0]}, {len(odd)} of {len(gradients)} tensors" if odd else "its square overflows"
        return f"the {self.role}'s gradient norm{of} is {norm} ({where})"

    def tensor_name(self, index: int) -> str:
        """A trained parameter, as messages call it."""
        return self.names[index] if self.names else f"parameter {index}"

    def require_finite(self) -> None:
        """NonFiniteError naming role, kind and tensor unless parameters, AdamW's moments and average are finite."""
        kept = {"parameter": self.parameters, "EMA": self.ema.tensors if self.ema else ()}
        for key in ("exp_avg", "exp_avg_sq"):
            kept[f"AdamW {key}"] = [self.optimizer.state[p][key] for p in self.parameters if p in self.optimizer.state]
        for kind, tensors in kept.items():
            for index, tensor in enumerate(tensors):
                odd = int((~torch.isfinite(tensor)).sum())
                if odd:
                    raise NonFiniteError(
                        f"the {self.role}'s {kind} of {self.tensor_name(index)} has {odd} non-finite values of"
                        f" {tensor.numel()}"
                    )

    def tensors(self, name: str) -> dict[str, dict[str, Tensor]]:
        """Everything that resuming needs, as named tensor groups."""
        groups = {
            f"{name}_parameters": checkpoints.indexed(self.parameters),
            f"{name}_optimizer": checkpoints.optimizer_tensors(self.optimizer),
            f"{name}_updates": {"updates": torch.tensor(self.updates)},
        }
        if self.ema is not None:
            groups[f"{name}_ema"] = checkpoints.indexed(self.ema.tensors)
        return groups

    def restore(self, name: str, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse of ``tensors``."""
        checkpoints.copy_indexed(self.parameters, groups[f"{name}_parameters"])
        checkpoints.restore_optimizer(self.optimizer, groups[f"{name}_optimizer"])
        self.updates = int(groups[f"{name}_updates"]["updates"])
        if self.ema is not None:
            checkpoints.copy_indexed(self.ema.tensors, groups[f"{name}_ema"])


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
