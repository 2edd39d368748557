"""Peak memory of each stage by part: what stays for the whole run, and the largest of what comes and goes.

Bytes of one process on its device. Left out: the runtime's own (a CUDA context and its libraries, the interpreter) and
what an allocator keeps beside what is in use; docs/plan.md has both, measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rtdmd.plan.costs import Cost, Costs
from rtdmd.plan.passes import pairs
from rtdmd.plan.stand import Stand, model_of
from rtdmd.plan.tally import size_of

if TYPE_CHECKING:
    from rtdmd.config import RewardParams

MOMENTS = 2  # AdamW's, of each trained number


@dataclass(frozen=True)
class Memory:
    """Bytes by part of what stays, and by phase of what comes and goes."""

    parts: dict[str, float]
    phases: dict[str, float]

    @property
    def phase(self) -> str:
        """The phase with the largest peak."""
        return max(self.phases, key=self.phases.__getitem__)

    @property
    def peak(self) -> float:
        """The most that is held at once."""
        return sum(self.parts.values()) + self.phases[self.phase]


def split(rows: int, processes: int) -> int:
    """Rows of the largest share."""
    return -(-rows // processes)


def acdmd_memory(costs: Costs, processes: int) -> Memory:
    """Stage one. A generator turn holds its last step's graph while the fake score learns and the teacher looks on."""
    stand, p = costs.stand, costs.stand.params.train_acdmd
    share, one = split(p.batch_size, processes), costs.fake
    rows = min(share, p.micro_batch)
    fakes = stand.params.model.num_steps if p.fake_per_step else 1
    parts = _weights(stand, ("acdmd", *("fake" for _ in range(fakes)))) | _text(stand)
    parts |= _optimizer(stand, "acdmd", terms=1, sums=rows < share, fakes=fakes)
    parts["prompts"] = (share + rows * (rows < share)) * stand.row_bytes()
    generator = rows * one.kept
    fake, transient = _fake(one, rows, pairs(p.consistency))
    phases = {
        "roll-out": rows * costs.teacher.peak,
        "fake score": generator + fake + transient,
        "teacher": generator + rows * costs.teacher.peak,
        "generator": generator + rows * one.back_peak,
    }
    return Memory(parts, phases)


def rtdmd_memory(costs: Costs, processes: int) -> Memory:
    """Stage two. Every pass goes in micro-batches; the last step's images are a copy of theirs in the roll-out."""
    stand, p = costs.stand, costs.stand.params.train_rtdmd
    steps = stand.params.model.num_steps
    images = split(p.prompts_per_epoch * p.group_size, processes)
    micro, last = min(p.micro_batch, images), min(split(p.last_step_batch_size, processes), images)
    image = stand.row_bytes() + 2 * steps * stand.latent_bytes()  # K+1 states, K-1 means
    terms = sum(weight > 0 for weight in vars(p.weights).values())
    parts = _weights(stand, ("acdmd", "rtdmd", "fake")) | _text(stand)
    parts |= _optimizer(stand, "rtdmd", terms=terms + 1, sums=micro < images)
    parts["decoder"] = size_of([stand.vae])[1]
    offloaded = _rewards(stand, [spec for spec in p.rewards if spec.offload])
    parts["rewards"] = _rewards(stand, [spec for spec in p.rewards if not spec.offload])
    parts["roll-out"] = (images + last) * image
    scores = costs.scores(p.rewards, gradient=False)
    own = costs.generator
    picture = 4 * 3 * stand.params.model.resolution**2  # the last that were scored
    learned = min(micro, split(p.fake_batch_size, processes))
    fake, transient = _fake(costs.fake, learned, pairs(p.consistency))
    phases = {
        "roll-out": micro * costs.teacher.peak,
        "rewards": offloaded + micro * max(costs.pictures.peak, costs.pictures.kept + scores.peak),
        "last step": offloaded
        + last * 4 * stand.latent_bytes()
        + micro * picture
        + min(micro, last) * _last_step(costs),
        "policy": micro * (own.kept + own.back_peak),
        "fake score": fake + transient + learned * (image + 4 * stand.latent_bytes()),
    }
    return Memory(parts, phases)


def _last_step(costs: Costs) -> float:
    """Bytes of an image in the last step's terms: the last step with decoder and rewards, then matching, which goes on
    from that step's graph, or with another of its own."""
    p = costs.stand.params.train_rtdmd
    own, teacher = costs.generator, costs.teacher
    propagated = 0.0
    if p.weights.backprop > 0:
        decode, scores = costs.decode, costs.scores(p.rewards, gradient=True)
        back = max(decode.back_peak, scores.back_peak, own.back_peak)
        propagated = own.kept + decode.kept + scores.kept + back
    matched = own.kept + max(teacher.peak, own.back_peak) if p.weights.matching > 0 else 0.0
    if p.backprop_at == "random_step" and matched:  # its own graph beside the last step's
        propagated += own.kept
    return max(propagated, matched)


def evaluate_memory(costs: Costs) -> Memory:
    """Evaluation: one model at a time, without gradients."""
    stand, p = costs.stand, costs.stand.params.evaluate
    parts = _weights(stand, ("acdmd", "rtdmd")) | _text(stand)
    parts |= {"decoder": size_of([stand.vae])[1], "rewards": _rewards(stand, p.rewards)}
    parts["prompts"] = p.batch_size * stand.row_bytes()
    pictures, scores = costs.pictures, costs.scores(p.rewards, gradient=False)
    phases = {
        "sampling": p.batch_size * costs.teacher.peak,
        "rewards": p.batch_size * max(pictures.peak, pictures.kept + scores.peak),
    }
    return Memory(parts, phases)


def cache_memory(stand: Stand, encode: Cost) -> Memory:
    """Text encoding: the encoders and a batch."""
    parts = {"text encoders": float(size_of(stand.text.values())[1])}
    return Memory(parts, {"encoding": stand.params.cache_teacher.batch_size * encode.peak})


def _weights(stand: Stand, adapters: tuple[str, ...]) -> dict[str, float]:
    """The base and the adapters (copies of it, in full mode, which a pass in half precision reads as such)."""
    base = stand.base_size()[1]
    halves = base if stand.roles.full and stand.backbone.dtype != torch.float32 else 0
    return {"transformer": base, "adapters": sum(map(stand.adapter_bytes, adapters)), "in half precision": halves}


def _optimizer(stand: Stand, generator: str, terms: int, sums: bool, fakes: int = 1) -> dict[str, float]:
    """Moments of the generator and of ``fakes`` fake scores, the generator's average, and gradients: of as many terms
    as are kept apart, of the fake score, and where micro-batches are added up (``sums``) one more and the sum."""
    own, fake = stand.adapter_bytes(generator), stand.adapter_bytes("fake")
    gradients = terms * own + fake + 2 * sums * max(own, fake)
    return {"optimizer": MOMENTS * (own + fakes * fake), "average": own, "gradients": gradients}


def _text(stand: Stand) -> dict[str, float]:
    """The text encoders, where prompts are encoded while training."""
    resident = stand.params.cache_teacher.mode == "on_the_fly"
    return {"text encoders": size_of(stand.text.values())[1] if resident else 0}


def _rewards(stand: Stand, specs: Iterable[RewardParams]) -> float:
    scorers = [stand.scorers[model_of(spec)] for spec in specs]
    recorded = sum(scorer.recorded[0] * scorer.recorded[1] for scorer in scorers)
    return recorded + size_of([module for scorer in scorers for module in scorer.modules])[1]


def _fake(one: Cost, rows: int, pairs: int) -> tuple[float, float]:
    """(graphs, what their backward pass adds) of a fake-score update."""
    return rows * (1 + pairs) * one.kept, rows * max(1, pairs) * one.back_peak
