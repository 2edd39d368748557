"""What a row (an image) costs in each pass: FLOPs, bytes that its graph keeps, bytes at its peak.

Each pass runs once on the meta device, on ``ROWS`` rows, and is linear in them: what does not grow with the rows
(weights, the gradients of the weights) is counted elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rtdmd.plan.cost_counter import META, CostCounter, count_cost
from rtdmd.plan.meta_models import MetaModels, Model
from rtdmd.plan.passes import Rows

if TYPE_CHECKING:
    from rtdmd.config import RewardParams

ROWS = 2


@dataclass(frozen=True)
class Cost:
    """Of a row. flops forward; peak: bytes held at once; kept: bytes that the graph holds for the backward pass (the
    result's where there is none); back_flops; back_peak on top of kept, without the gradients that it is for; and
    again_peak, the same where another backward pass follows, for which the graph stays whole."""

    flops: float = 0.0
    peak: float = 0.0
    saved: float = 0.0
    backward_flops: float = 0.0
    backward_peak: float = 0.0
    recompute_peak: float = 0.0


@dataclass(eq=False)
class Costs:
    """The passes of a run, each counted when it is first asked for; ``learning``: with the gradients of those that have
    one while training, which evaluation never asks for."""

    models: MetaModels
    learning: bool = True
    counted: dict[Any, Cost] = field(default_factory=dict)

    def _once(self, name: Any, counting: Callable[[], Cost]) -> Cost:
        if name not in self.counted:
            self.counted[name] = counting()
        return self.counted[name]

    @property
    def two(self) -> Cost:
        """Two adapters on the base, the gradient in the upper one."""
        return self._velocity("generator", "rtdmd")

    @property
    def one(self) -> Cost:
        """One adapter on the base, or on layers that another is merged into: both learning roles of stage one."""
        return self._velocity("fake", "fake")

    @property
    def generator(self) -> Cost:
        """Stage two's generator."""
        return self.one if self.models.merged else self.two

    @property
    def fake(self) -> Cost:
        """Stage two's fake score."""
        return self.two if self.models.new_fake and not self.models.merged else self.one

    @property
    def reference(self) -> Cost:
        """Stage one's student below stage two's, without gradient."""
        return self._velocity("base" if self.models.merged else "reference")

    @property
    def teacher(self) -> Cost:
        """The teacher's guided velocity, without gradient."""
        return self._velocity("teacher")

    @property
    def unguided(self) -> Cost:
        """The teacher's velocity without guidance, without gradient."""
        return self._velocity("base")

    @property
    def decode(self) -> Cost:
        """The decoder, with the gradient in its latents."""
        return self._decoded(gradient=self.learning)

    @property
    def pictures(self) -> Cost:
        """The decoder without gradient."""
        return self._decoded(gradient=False)

    def scores(self, specs: Iterable[RewardParams], gradient: bool) -> Cost:
        """These rewards of one image; ``gradient``: those that carry one alone, with it."""
        found = [self._scored(spec.networks(), gradient) for spec in specs]
        return Cost(
            flops=sum(one.flops for one in found),
            peak=max((one.peak for one in found), default=0.0),
            saved=sum(one.saved for one in found),
            backward_flops=sum(one.backward_flops for one in found),
            backward_peak=max((one.backward_peak for one in found), default=0.0),
            recompute_peak=max((one.recompute_peak for one in found), default=0.0),
        )

    def _velocity(self, role: str, adapter: str | None = None) -> Cost:
        """A role's velocity, while learning with the gradient in an adapter."""

        def counting() -> Cost:
            leaves = self.models.adapter(adapter) if adapter is not None and self.learning else []
            cond = self.models.cond(ROWS)
            x = self.models.latents(ROWS)
            for leaf in leaves:
                leaf.requires_grad_(True)
            known = [*self.models.known, x, *cond.tensors.values()]
            try:
                return count(lambda: self.models.velocity(role, cond, x), leaves, known)
            finally:
                for leaf in leaves:
                    leaf.requires_grad_(False)

        return self._once(role, counting)

    def _decoded(self, gradient: bool) -> Cost:
        def counting() -> Cost:
            latents = self.models.latents(ROWS).requires_grad_(gradient)
            known = [*self.models.known, latents]
            decode = partial(self.models.backbone.decode, latents)
            return count(decode, [latents] if gradient else [], known, released=True)  # once they are scored

        return self._once(("decoder", gradient), counting)

    def _scored(self, model: Model, gradient: bool) -> Cost:
        def counting() -> Cost:
            scorer = self.models.scorers[model]
            if gradient and not scorer.differentiable:
                return Cost()
            if scorer.score is None:  # which is not run here
                return Cost(flops=2 * scorer.recorded.parameters * scorer.recorded.tokens)
            images = torch.empty(ROWS, 3, *self.models.params.model.size, device=META, requires_grad=gradient)
            return count(partial(scorer.score, images), [images] if gradient else [], self.models.known)

        return self._once((model, gradient), counting)


def count(
    run: Callable[[], Tensor], leaves: Sequence[Tensor], known: Iterable[Tensor], *, released: bool = False
) -> Cost:
    """The cost of a row of ``run``, and of its gradient in ``leaves`` where there are any. What the graph keeps has the
    result in it, unless it is ``released`` before the backward pass and the graph can do without it."""
    with torch.set_grad_enabled(bool(leaves)), count_cost([*known, *leaves]) as counter:
        out = run()
        forward = Cost(counter.flops / ROWS, counter.peak / ROWS, counter.live / ROWS)
        if not leaves:
            return forward
        end = get_gradient_edge(out)
        like = partial(torch.empty, out.shape, dtype=out.dtype, device=out.device)
        if released:
            del out
            forward = replace(forward, saved=counter.live / ROWS)
        hooks = [leaf.register_hook(counter.forget) for leaf in leaves]
        counter.flops = 0
        again = _backward(end, like, leaves, counter, retain=True)
        flops = counter.flops
        last = _backward(end, like, leaves, counter, retain=False)
        for hook in hooks:
            hook.remove()
        return replace(forward, backward_flops=flops / ROWS, backward_peak=last / ROWS, recompute_peak=again / ROWS)


def _backward(
    end: GradientEdge, gradient: Callable[[], Tensor], leaves: Sequence[Tensor], counter: CostCounter, *, retain: bool
) -> int:
    """Bytes above those at its start at the peak of a backward pass from ``end``; ``retain``: the graph outlives it."""
    counter.peak = start = counter.live
    torch.autograd.grad(end, leaves, gradient(), retain_graph=retain)
    return counter.peak - start


def flops_of(rows: Rows, costs: Costs, stage: str, scorers: Sequence[RewardParams] | None = None) -> float:
    """FLOPs of the passes of `rtdmd.plan.passes`; scorers: those that score, None: the stage's rewards."""
    rewards = getattr(getattr(costs.models.params, stage), "rewards", ()) if scorers is None else scorers
    found = {"unguided-teacher": "unguided", "surrogate": "one"}  # the passes that `Costs` has under another name
    if stage == "train_acdmd":
        found |= {"generator": "one", "fake": "one"}
    total = 0.0
    for name, number in rows.items():
        if number:
            what, direction = name.split()
            if what in ("score", "pathwise"):
                cost = costs.scores(rewards, gradient=what == "pathwise")
            else:
                cost = getattr(costs, found.get(what, what))
            total += number * (cost.flops if direction == "forward" else cost.backward_flops)
    return total
