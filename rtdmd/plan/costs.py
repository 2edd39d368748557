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
from rtdmd.plan.meta_models import MetaModels, Model, model_of
from rtdmd.plan.passes import Rows

if TYPE_CHECKING:
    from rtdmd.config import Params, RewardParams

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

    def sized(self, params: Params) -> Costs:
        """The same passes for settings that differ in the sizes of updates alone; what is counted is not counted
        again."""
        return replace(self, models=self.models.sized(params))

    def _once(self, name: Any, counting: Callable[[], Cost]) -> Cost:
        if name not in self.counted:
            self.counted[name] = counting()
        return self.counted[name]

    @property
    def two(self) -> Cost:
        """Two adapters on the base, the gradient in the upper one."""
        return self._once("two", lambda: self._velocity("generator", self.models.adapter("rtdmd")))

    @property
    def one(self) -> Cost:
        """One adapter on the base, or on layers that another is merged into: both learning roles of stage one."""
        return self._once("one", lambda: self._velocity("fake", self.models.adapter("fake")))

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
        return self._once("reference", lambda: self._velocity("base" if self.models.merged else "reference", []))

    @property
    def teacher(self) -> Cost:
        """The teacher's guided velocity, without gradient."""
        return self._once("teacher", lambda: self._velocity("teacher", []))

    @property
    def unguided(self) -> Cost:
        """The teacher's velocity without guidance, without gradient."""
        return self._once("unguided", lambda: self._velocity("base", []))

    @property
    def decode(self) -> Cost:
        """The decoder, with the gradient in its latents."""
        if not self.learning:
            return self.pictures
        return self._once("decode", lambda: self._decoded(gradient=True))

    @property
    def pictures(self) -> Cost:
        """The decoder without gradient."""
        return self._once("pictures", lambda: self._decoded(gradient=False))

    def _decoded(self, gradient: bool) -> Cost:
        latents = self.models.latents(ROWS)
        leaves = [latents.requires_grad_()] if gradient else []
        known = [*self.models.known, latents]
        return count(lambda: self.models.backbone.decode(latents), leaves, known, released=True)  # once they are scored

    def scores(self, specs: Iterable[RewardParams], gradient: bool) -> Cost:
        """These rewards of one image; ``gradient``: those that carry one alone, with it."""
        found = [self._score(model, gradient) for model in map(model_of, specs)]
        return Cost(
            flops=sum(one.flops for one in found),
            peak=max((one.peak for one in found), default=0.0),
            saved=sum(one.saved for one in found),
            backward_flops=sum(one.backward_flops for one in found),
            backward_peak=max((one.backward_peak for one in found), default=0.0),
            recompute_peak=max((one.recompute_peak for one in found), default=0.0),
        )

    def _score(self, model: Model, gradient: bool) -> Cost:
        return self._once((model, gradient), lambda: self._scored(model, gradient))

    def _scored(self, model: Model, gradient: bool) -> Cost:
        scorer = self.models.scorers[model]
        if gradient and not scorer.differentiable:
            return Cost()
        if scorer.score is None:
            return Cost(flops=scorer.flops_per_image())
        images = torch.empty(ROWS, 3, *self.models.params.model.size, device=META, requires_grad=gradient)
        score = scorer.score
        return count(lambda: score(images), [images] if gradient else [], self.models.known)

    def _velocity(self, role: str, learned: Sequence[Tensor]) -> Cost:
        leaves = learned if self.learning else ()
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
    first = stage == "train_acdmd"
    by_name = {
        "generator": lambda: costs.one if first else costs.generator,
        "reference": lambda: costs.reference,
        "fake": lambda: costs.one if first else costs.fake,
        "teacher": lambda: costs.teacher,
        "unguided-teacher": lambda: costs.unguided,
        "surrogate": lambda: costs.one,
        "decode": lambda: costs.decode,
        "score": lambda: costs.scores(rewards, gradient=False),
        "pathwise": lambda: costs.scores(rewards, gradient=True),
    }
    total = 0.0
    for name, number in rows.items():
        if number:
            what, direction = name.split()
            cost = by_name[what]()
            total += number * (cost.flops if direction == "forward" else cost.backward_flops)
    return total
