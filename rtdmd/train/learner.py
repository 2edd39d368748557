"""What learns: the parameters of one role with their AdamW, and the moving average of them that is delivered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rtdmd.common.errors import NonFiniteError
from rtdmd.train.engine import checkpoint as checkpoints

if TYPE_CHECKING:
    from rtdmd.config import OptimizerParams


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
