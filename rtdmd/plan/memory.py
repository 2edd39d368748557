"""Peak memory of each stage by part: what stays for the whole run, and the largest of what comes and goes.

Bytes of one process on its device. Left out: the runtime's own (a CUDA context and its libraries, the interpreter) and
what an allocator keeps beside what is in use; docs/verification.md has both, measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rtdmd.plan.cost_counter import size_of
from rtdmd.plan.costs import Cost, Costs
from rtdmd.plan.meta_models import MetaModels
from rtdmd.plan.passes import pairs
from rtdmd.rewards.reward_models import MAX_WAITING
from rtdmd.train.learner import shared_terms

if TYPE_CHECKING:
    from rtdmd.config import Params, RewardParams, WatchParams
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.config.training import TrainingParams

MOMENTS = 2  # AdamW's, of each trained number
GATHERED = 3  # blocks of a sharded base, read off torch's FSDP2
STUDENTS = "student's transformer"  # where it is another than the teacher's


@dataclass(frozen=True)
class Memory:
    """Bytes by part of what stays for the whole run, and of what comes and goes in each phase of an update."""

    parts: dict[str, float]
    phases: dict[str, dict[str, float]]
    host: float = 0.0  # scorers that wait on the CPU for their turn on the device, the rollout, images; 0 on the CPU

    @property
    def phase(self) -> str:
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def held(self) -> dict[str, float]:
        """All parts at the peak."""
        return self.parts | self.phases[self.phase]

    @property
    def peak(self) -> float:
        return sum(self.held.values())


def split(rows: int, processes: int) -> int:
    """Rows of the largest share."""
    return -(-rows // processes)


def acdmd_memory(costs: Costs, params: Params, processes: int) -> Memory:
    """Stage one. A generator turn holds its last step's graph while the teacher looks on and, on a shared rollout,
    beside the graph of the fake score's velocity; it is gone before the fake score's further passes, which its gradient
    outlives. On a rollout of its own it comes when the fake score's update is over."""
    models = costs.models
    p = params.train_acdmd
    share = split(p.batch_size, processes)
    one = costs.one
    rows = min(share, p.micro_batch)
    fakes = params.model.num_steps if p.fake_per_step else 1
    parts = _weights(models, ("acdmd", *("fake" for _ in range(fakes)))) | _shards(models, p, processes)
    parts |= _text(models, params) | _optimizer(models, "acdmd", fakes)
    parts["prompts"] = (share + rows * (rows < share)) * models.row_bytes()
    own = models.adapter_bytes("acdmd")
    fake = models.adapter_bytes("fake")
    sums = int(rows < share)
    graph = rows * one.saved
    latent = models.latent_bytes()
    more = pairs(p.consistency)
    renoised = 4 * latent  # x_s and x_t with their noises
    point = renoised + 2 * latent  # and the teacher's velocity and the direction
    shared = p.generator_rollout == "shared"
    learned_at = point if shared else renoised
    learned = sums * (own + fake) if shared else sums * max(own, fake)  # sums of the micro-batches before
    phases = {
        "rollout": _phase(rows * costs.teacher.peak, learned),
        "teacher": _phase(graph + rows * costs.teacher.peak, sums * (own + fake * shared)),
        "generator": _phase(graph * (1 + shared) + rows * (one.backward_peak + point), sums * (own + fake * shared)),
        "fake score": _phase(rows * (_fake(one, more) + learned_at + 2 * more * latent), own * shared + sums * fake),
        "update": _phase(0, max(own, fake) * (1 + 2 * sums) + min(own, fake) * shared),
    }
    return Memory(parts, phases)


def rtdmd_memory(costs: Costs, params: Params, processes: int) -> Memory:
    """Stage two. Every pass goes in micro-batches, for which the rollout's part comes from the host."""
    models = costs.models
    p = params.train_rtdmd
    images = split(p.prompts_per_epoch * p.group_size, processes)
    # A base of the student's own is merged in place; where it is the teacher's too, copies of its layers are.
    copies = ((not models.two_bases) + models.new_fake) * models.merged
    surrogates = int(p.weights.surrogate > 0)  # of the fake score's shape
    parts = _weights(models, ("acdmd", "rtdmd", "fake", *["fake"] * (models.new_fake + surrogates)))
    parts |= _shards(models, p, processes, copies)
    if models.merged:
        parts["merged layers"] = copies * models.adapted_bytes() / p.base_shards(processes)
    parts |= _text(models, params) | _optimizer(models, "rtdmd", 1 + surrogates)
    parts["decoder"] = size_of([models.vae])[1]
    resident, waiting = _placed(models, p.rewards)
    parts["rewards"] = _rewards(models, resident)
    host = 0.0
    if models.apart:
        chosen = _last_rows(p, images, processes)
        texts = split(p.prompts_per_epoch, processes) * models.row_bytes()
        rolled = (images + chosen) * _latents(models) + texts
        pictures = images * _picture(models) + 2 * chosen * _picture(models) * (p.weights.backprop > 0)
        host = rolled + _rewards(models, waiting) + min(pictures, MAX_WAITING) * bool(waiting)
    return Memory(parts, _epoch(costs, p, images, processes), host)


def _last_rows(p: TrainRtdmdParams, images: int, processes: int) -> int:
    """Images of the last step's terms."""
    return images if p.matching_path == "reward" else min(split(p.last_step_batch_size, processes), images)


def _latents(models: MetaModels) -> int:
    """Bytes of an image in the rollout: K+1 states, K-1 means."""
    return 2 * models.params.model.num_steps * models.latent_bytes()


def _picture(models: MetaModels) -> int:
    """Bytes of an image as the decoder gives it, float32."""
    height, width = models.params.model.size
    return 4 * 3 * height * width


def _epoch(costs: Costs, p: TrainRtdmdParams, images: int, processes: int) -> dict[str, dict[str, float]]:
    """What comes and goes in an epoch on so many images of this process. Each sum of terms' gradients stays until the
    generator's update, so that they add up from phase to phase. In a backward pass the new gradient grows as the graph
    is freed, and so adds nothing to the peak, but where the graph is needed once more."""
    models = costs.models
    one = models.adapter_bytes("rtdmd")
    fake = models.adapter_bytes("fake")
    w = p.weights
    chosen = _last_rows(p, images, processes)
    learned = min(split(p.fake_batch_size, processes), images)
    micro, last, ours = (min(p.micro_batch, rows) for rows in (images, chosen, learned))
    sums = micro < images
    sums_last = last < chosen
    sums_fake = ours < learned
    # On the device of the rollout a micro-batch: a text for each image, states and means.
    text = models.row_bytes()
    image = text + 4 * models.latent_bytes()
    rolled = micro * image
    both = rolled
    if not models.apart:
        rolled += images * _latents(models) + split(p.prompts_per_epoch, processes) * text
        both = rolled + chosen * _latents(models)  # the last step's images are a copy
    shared = shared_terms(p)
    sum_of = {name: shared.get(name, name) for name, weight in w if weight > 0}  # of the terms that are there
    on_last = {sum_of[name] for name in ("matching", "backprop") if name in sum_of}
    stochastic = ("policy", "reference_kl", *["matching"] * (p.matching_path == "reward"))
    on_trained = {sum_of[name] for name in stochastic if name in sum_of}
    before = len(on_last)
    passed = len(on_trained - on_last)
    terms = len(set(sum_of.values()))
    resident, waiting = _placed(models, p.rewards)
    picture = _picture(models)
    scored = (images % micro or micro) * picture  # the last micro-batch's
    point = 4 * models.latent_bytes()  # a renoised image: its noise and itself, directions, velocities

    own = costs.generator
    decoded = micro * _scoring(costs, resident, sums * picture)
    phases = {
        "rollout": _phase(micro * costs.teacher.peak, 0, rolled),
        "rewards": _phase(max(decoded, _turns(costs, waiting, micro)), 0, rolled),
    }
    if before:
        again = (1 + sums_last) * one if before > 1 else 0
        points = (last if models.apart else chosen) * point
        step = points + scored + _last_step(costs, p, last, again)
        followed = [spec for spec in waiting if spec.differentiable and w.backprop > 0]
        alone = points + _turns(costs, followed, last, gradient=True)
        phases["last step"] = _phase(max(step, alone), before * sums_last * one, both)
    if on_trained:
        back = micro * own.backward_peak
        if len(on_trained) > 1:
            back = micro * own.recompute_peak + (1 + sums) * one
        back = max(back, micro * costs.teacher.peak * (w.reference_kl > 0))
        phases["policy"] = _phase(micro * own.saved + back, (before + passed * sums) * one, rolled)
    for name, weight in (("NFT", w.nft), ("AWM", w.awm)):
        if weight > 0:
            phases[name] = _phase(micro * (own.saved + own.backward_peak), (before + passed + sums) * one, rolled)
            passed += 1
    if w.surrogate > 0:
        learning = micro * max(costs.one.saved + costs.one.backward_peak, costs.unguided.peak)
        phases["surrogate"] = _phase(learning, before * one + fake, rolled)
        term = last * max(own.saved + own.backward_peak, costs.teacher.peak)
        phases["surrogate's term"] = _phase(term, (before + passed + sums_last) * one, both)
    if p.fake_updates_per_epoch:
        graphs = ours * (_fake(costs.fake, pairs(p.consistency)) + image + point)
        phases["fake score"] = _phase(graphs, sums_fake * fake, rolled)
        phases["fake update"] = _phase(0, (1 + 2 * sums_fake) * fake, rolled)
    combined = (3 if terms > 1 else 1) * one  # the sum so far, the next term scaled, and the two added up
    phases["update"] = _phase(0, terms * one + combined, rolled)
    return phases


def _phase(activations: float, gradients: float, rollout: float = 0) -> dict[str, float]:
    return {"gradients": gradients, "rollout": rollout, "activations": activations}


def _last_step(costs: Costs, p: TrainRtdmdParams, rows: int, again: float) -> float:
    """Bytes of so many images in the last step's terms, in the epoch that takes most: one in which both go through the
    same step. Decoder, rewards and teacher are gone before the generator's graph is there. ``again``: bytes of the
    gradients beside a graph that is needed once more, since both terms have sums of their own; else 0."""
    own = costs.generator
    teacher = costs.teacher
    found = [rows * (own.saved + own.backward_peak)]
    if again and p.matching_path != "whole_chain":  # which runs its own steps, one at a time
        found.append(rows * (own.saved + own.recompute_peak) + again)
    if p.weights.backprop > 0:
        decode = costs.decode
        picture = _picture(costs.models)
        found += [rows * decode.peak, rows * (decode.saved + 2 * picture + decode.backward_peak)]
        held = decode.saved + picture
        for spec in _placed(costs.models, p.rewards)[0]:  # one after the other, beside the sum of those before
            if spec.differentiable:
                score = costs.scores([spec], gradient=True)
                found.append(rows * (held + max(score.peak, score.saved + score.backward_peak + picture)))
                held = decode.saved + 2 * picture
    if p.weights.matching > 0:
        found += [rows * teacher.peak] + [rows * _scoring(costs, p.rewards)] * (p.matching_gain > 0)
    return max(found)


def _scoring(costs: Costs, specs: Sequence[RewardParams], before: float = 0.0) -> float:
    """Bytes of an image while it is decoded, beside one of the micro-batch ``before``, and scored, without gradient."""
    scores = costs.scores(specs, gradient=False)
    return max(costs.pictures.peak + before, costs.pictures.saved + scores.peak)


def _placed(models: MetaModels, specs: Sequence[RewardParams]) -> tuple[list[RewardParams], list[RewardParams]]:
    """Scorers whose weights are on the device for the whole run (of a CPU all, since it is its own host), and those
    that come in turn."""
    waiting = [spec for spec in specs if models.apart and spec.offload]
    return [spec for spec in specs if spec not in waiting], waiting


def _turns(costs: Costs, specs: Iterable[RewardParams], rows: int, gradient: bool = False) -> float:
    """Bytes of the largest turn of offloaded scorers: its weights, a micro-batch of ``rows`` images and what scoring it
    takes; 0 where there is none."""
    images = rows * _picture(costs.models) * (1 + gradient)
    largest = 0.0
    for spec in specs:
        score = costs.scores([spec], gradient)
        own = max(score.peak, score.saved + score.backward_peak) if gradient else score.peak
        largest = max(largest, _rewards(costs.models, [spec]) + images + rows * own)
    return largest


def evaluate_memory(costs: Costs, params: Params) -> Memory:
    """Evaluation: one model at a time, without gradients."""
    models = costs.models
    p = params.evaluate
    parts = _weights(models, ("acdmd", "rtdmd")) | _text(models, params)
    parts.pop(STUDENTS, None)  # one model at a time, and each has one base
    parts["decoder"] = size_of([models.vae])[1]
    staying, waiting = _placed(models, p.rewards)
    parts["rewards"] = _rewards(models, staying)
    parts["prompts"] = p.batch_size * models.row_bytes()
    judged = p.batch_size * _scoring(costs, staying)
    phases = {
        "sampling": _phase(p.batch_size * costs.teacher.peak, 0),
        "rewards": _phase(max(judged, _turns(costs, waiting, p.batch_size)), 0),
    }
    return Memory(parts, phases, (_rewards(models, waiting) + MAX_WAITING) if waiting else 0.0)


def with_watch(memory: Memory, p: WatchParams, micro_batch: int, sized: Mapping[int, Costs]) -> Memory:
    """The memory of a training stage that evaluates its student, while nothing of an update is there: images are drawn,
    then the scorers come in turn. ``sized``: the costs at each suite's resolution."""
    models = next(iter(sized.values())).models
    rows = min(micro_batch, p.max_prompts)
    phase = 0.0
    for suite in p.suites:
        costs = sized[suite.resolution or models.params.model.resolution]
        drawn = rows * max(costs.teacher.peak, costs.pictures.peak)
        phase = max(phase, drawn, _turns(costs, suite.scorers(p.rewards), rows))
    scorers = _rewards(models, p.rewards)
    parts = memory.parts | {"decoder": size_of([models.vae])[1]}
    if not models.apart:  # where they wait is where they score
        parts["watch's scorers"] = scorers
    return Memory(parts, memory.phases | {"watch": _phase(phase, 0)}, memory.host + scorers)


def cache_memory(models: MetaModels, params: Params, encode: Cost) -> Memory:
    """Text encoding: the encoders and a batch."""
    parts = {"text encoders": float(size_of(models.text.values())[1])}
    return Memory(parts, {"encoding": _phase(params.cache_teacher.batch_size * encode.peak, 0)})


def _weights(models: MetaModels, adapters: tuple[str, ...]) -> dict[str, float]:
    """The bases and the adapters (copies of one, in full mode, which a pass in half precision reads as such)."""
    base = models.base_size()[1]
    halves = base if models.bank.full and models.backbone.dtype != torch.float32 else 0
    bases: dict[str, float] = {"transformer": base}
    if models.two_bases:
        bases[STUDENTS] = base
    return bases | {"adapters": sum(map(models.adapter_bytes, adapters)), "in half precision": halves}


def _shards(models: MetaModels, p: TrainingParams, processes: int, copies: int = 0) -> dict[str, float]:
    """What is left of each base that is sharded: what is outside its blocks, this process's shard of them, and the
    blocks whole for a moment (the gathered one, the buffer that it came through, that of the one before, and the last
    one of the other base). A block of the teacher's is gathered with the ``copies`` of its adapted layers that are
    merged."""
    if p.sharding == "none" or processes == 1:
        return {}
    blocks = models.block_sizes()
    sizes = [size for size, _ in blocks]
    left = models.base_size()[1] - sum(sizes) + sum(sizes) / p.base_shards(processes)
    gathered = GATHERED * max(size + copies * adapted for size, adapted in blocks) + models.two_bases * max(sizes)
    bases = {"transformer": left} | ({STUDENTS: left} if models.two_bases else {})
    return bases | {"gathered blocks": gathered}


def _optimizer(models: MetaModels, generator: str, fakes: int = 1) -> dict[str, float]:
    """Moments of the generator and of ``fakes`` fake scores, which every update but the first finds there, and the
    generator's average."""
    own = models.adapter_bytes(generator)
    fake = models.adapter_bytes("fake")
    return {"optimizer": MOMENTS * (own + fakes * fake), "EMA": own}


def _text(models: MetaModels, params: Params) -> dict[str, float]:
    """The text encoders, where prompts are encoded while training."""
    resident = params.cache_teacher.mode == "on_the_fly"
    return {"text encoders": size_of(models.text.values())[1] if resident else 0}


def _rewards(models: MetaModels, specs: Iterable[RewardParams]) -> float:
    scorers = [models.scorers[spec.networks()] for spec in specs]
    recorded = sum(scorer.recorded.parameters * scorer.recorded.width for scorer in scorers)
    return recorded + size_of([module for scorer in scorers for module in scorer.modules])[1]


def _fake(one: Cost, pairs: int) -> float:
    """Bytes of an image in a fake-score update: its graphs, and what their backward pass adds."""
    return (1 + pairs) * one.saved + max(1, pairs) * one.backward_peak
