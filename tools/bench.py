"""The time of a training update over the time of its bare model passes, both measured here, one after the other.

An update runs as its stage runs it, and every pass of a model in it (velocities, decoder, rewards) is noted with its
inputs. Then the passes run again, alone: same shapes, same gradient mode, as many backward passes as the algorithm
needs: one each, and one for each term only where terms are brought to norm 1. What the ratio leaves above 1 is the
stage's own work: noise, equations, gradients' sums, the optimizer, records, and any backward pass too many.

The passes of the transformer are counted twice: those that the algorithm needs, from the parameters
(`rtdmd/plan/passes.py`, whose drawn choices are means), and those that the updates made, by hooks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rtdmd.backbones import Conditioning, load_backbone
from rtdmd.common.errors import UserError
from rtdmd.common.torch_setup import configure
from rtdmd.config import Params
from rtdmd.plan.budget import Counts, update_counts
from rtdmd.plan.models import part_configs, text_shapes
from rtdmd.plan.passes import guided_passes
from rtdmd.prompts.records import read_set
from rtdmd.rehearse.updates import Update, stage_one, stage_two
from rtdmd.rewards.reward_models import load_rewards
from rtdmd.train.learner import TERMS

PROMPTS = Path("results/prepare_prompts/train.jsonl")


@dataclass(frozen=True)
class Times:
    """Seconds of so many updates and of their passes: of the processor (all threads), and of the clock; passes of an
    update by need and as made."""

    updates: int
    update: tuple[float, float]
    passes: tuple[float, float]
    needed: Counts
    made: Counts

    @property
    def ratio(self) -> float:
        """Of processor times, which other programs on this machine do not lengthen."""
        return self.update[0] / self.passes[0]


@dataclass
class Pass:
    """One pass: ``run`` gives its output, ``leaves`` are what its gradient is taken in, ``backwards`` how often;
    ``forward`` and ``backward``: images that go through the transformer in it, and back in each of ``backwards``."""

    run: Callable[[], Tensor]
    leaves: list[Tensor]
    forward: int
    backward: int
    backwards: int = 0

    def again(self, most: int) -> None:
        """Run it, and as many backward passes, at most so many."""
        with torch.set_grad_enabled(bool(self.leaves)):
            out = self.run()
        count = min(self.backwards, most)
        for i in range(count):
            torch.autograd.grad(out, self.leaves, torch.ones_like(out), retain_graph=i + 1 < count)


@dataclass
class Passes:
    """The passes of an update, in their order; ``most``: backward passes of one that the algorithm needs."""

    most: int = 1
    found: list[Pass] = field(default_factory=list)

    def again(self) -> None:
        """Run them all, alone."""
        for one in self.found:
            one.again(self.most)

    def made(self) -> Counts:
        """What went through the transformer."""
        return Counts(sum(one.forward for one in self.found), sum(one.backward * one.backwards for one in self.found))

    def note(
        self, out: Tensor, run: Callable[[], Tensor], leaves: list[Tensor], forward: int = 0, backward: int = 0
    ) -> Tensor:
        """``out``, watched: each gradient that reaches it is a backward pass."""
        one = Pass(run, leaves if out.requires_grad else [], forward, backward)
        self.found.append(one)
        if out.requires_grad:

            def count(gradient: Tensor) -> None:
                one.backwards += 1

            out.register_hook(count)
        return out

    def watch_adapters(self, adapters: Any, leaves: dict[str, list[nn.Parameter]], guiding: int) -> None:
        """Note every velocity; ``leaves``: what each role learns; ``guiding``: passes of a guided velocity."""
        own = adapters.velocity

        def velocity(role: str, x: Tensor, sigma: Tensor, cond: Conditioning, **options: Any) -> Tensor:
            start = x.detach()
            out = own(role, x, sigma, cond, **options)
            passes = len(start) * (guiding if options.get("guidance", 1.0) != 1.0 else 1)
            again = partial(own, role, start, sigma, cond, **options)
            return self.note(out, again, list(leaves.get(role, [])), passes, len(start))

        adapters.velocity = velocity

    def watch(self, owner: Any, name: str) -> None:
        """Note every call of a method whose first argument is a tensor: the decoder, a reward."""
        own = getattr(owner, name)

        def method(first: Tensor, *rest: Any) -> Tensor:
            out = own(first, *rest)
            start = first.detach().requires_grad_(out.requires_grad)
            return self.note(out, lambda: own(start, *rest), [start])

        setattr(owner, name, method)


def bench(params: Params, repeats: int, root: Path = Path(".")) -> Iterator[tuple[str, Times]]:
    """(stage, times) of both training stages. UserError where the prompts are not there."""
    records = [prompt.row() for prompt in read_set(require_prompts(root), params.train_rtdmd.prompts)]
    device = configure(params.run)
    yield "train_acdmd", _timed(*_first(params, root, device), repeats, needed(params, "train_acdmd"))
    yield "train_rtdmd", _timed(*_second(params, root, device, records), repeats, needed(params, "train_rtdmd"))


def require_prompts(root: Path) -> Path:
    """The training prompts' file. UserError where it is not there."""
    path = root / PROMPTS
    if not path.is_file():
        raise UserError(f"{path}: no such file; `rtdmd prepare_prompts` makes it")
    return path


def needed(params: Params, stage: str) -> Counts:
    """What an update of a stage, a round of stage one, takes through the transformer by the algorithm."""
    iterations = params.train_acdmd.generator_every if stage == "train_acdmd" else 1
    forward, backward = update_counts(params, stage)
    return Counts(iterations * forward, iterations * backward)


def _timed(update: Update, passes: Passes, repeats: int, need: Counts) -> Times:
    """Update and passes in turn, after one of each that does not count."""
    whole = list[tuple[float, float]]()
    bare = list[tuple[float, float]]()
    made = list[Counts]()
    for step in range(repeats + 1):
        passes.found.clear()
        whole.append(_clocked(partial(update, step)))
        made.append(passes.made())
        bare.append(_clocked(passes.again))
    forward, backward = _sums(made[1:])
    return Times(repeats, _sums(whole[1:]), _sums(bare[1:]), need, Counts(forward / repeats, backward / repeats))


def _sums(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(first for first, _ in pairs), sum(second for _, second in pairs)


def _clocked(run: Callable[[], object]) -> tuple[float, float]:
    began = time.process_time(), time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - began[0], time.perf_counter() - began[1]


def _first(params: Params, root: Path, device: torch.device) -> tuple[Update, Passes]:
    """Stage one: a round of untrained adapters, since only their time is asked for."""
    passes = Passes()
    backbone = load_backbone(params.model, vae=False, device=device, root=root)
    trainer, update = stage_one(params, backbone, text_shapes(params.model, part_configs(params.model, root)))
    passes.watch_adapters(
        trainer.adapters,
        {"generator": trainer.generator.parameters, **{name: fake.parameters for name, fake in trainer.fakes.items()}},
        guided_passes(params),
    )
    return update, passes


def _second(params: Params, root: Path, device: torch.device, prompts: list[dict[str, Any]]) -> tuple[Update, Passes]:
    """Stage two: an epoch. Rewards keep a text's embedding, so that a run computes it once; here the epoch that does
    not count does, as the passes that are run again find it kept."""
    passes = Passes(1 if params.train_rtdmd.gradient_scaling == "none" else len(TERMS))
    backbone = load_backbone(params.model, vae=True, device=device, root=root)
    reward_models = load_rewards(params.train_rtdmd.rewards, device, root)
    shapes = text_shapes(params.model, part_configs(params.model, root))
    trainer, update = stage_two(params, backbone, reward_models, shapes, prompts)
    passes.watch_adapters(
        trainer.adapters,
        {role: learner.parameters for role, learner in trainer.learners.items()},
        guided_passes(params),
    )
    passes.watch(backbone, "decode")
    for reward in reward_models.rewards.values():
        passes.watch(reward, "score")
    return update, passes
