"""What a method spends, in forward passes of the generator: the currency in which the comparison is fair.

Every pass of a network over one image counts with its price relative to one forward pass of the stage-two generator
(the transformer with two adapters). Prices were measured on the embedded world, batches of 48, one thread: 2.66 ms for
that pass. Text embedding, optimizer and averages are left out; wall seconds stand beside the budget in the results.

Legend: K sampler steps, N images of a roll-out, B of them in the last step's terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from rtdmd.config import Params, TrainRtdmdParams


@dataclass(frozen=True)
class Prices:
    """Passes over one image in forward passes of the stage-two generator."""

    teacher: float = 0.63  # no adapter
    one: float = 0.87  # one adapter: the fake score, stage one's generator
    two: float = 1.0  # two adapters: stage two's generator
    backward: float = 1.4  # through the transformer to an adapter
    decode: float = 1.26
    score: float = 0.13  # one reward; CLIP 0.12, the verifier 0.14
    decode_backward: float = 0.9  # from a reward through the decoder to the latent


WORLD = Prices()


def stage_one_iteration(params: Params, prices: Prices = WORLD) -> float:
    """Mean cost of one iteration of stage one."""
    p, steps = params.train_acdmd, params.model.num_steps
    rolled = steps if p.stop == "last" else (steps + 1) / 2
    learning = prices.one + prices.backward
    consistency = 2 * learning if p.consistency.weight > 0 else 0.0
    turn = (prices.backward + guided(params) * prices.teacher) / p.generator_every
    return p.batch_size * (rolled * prices.one + learning + consistency + turn)


def stage_two_epoch(params: Params, prices: Prices = WORLD, kept: float = 1.0) -> dict[str, float]:
    """Mean cost of one epoch of stage two by part; ``kept``: share of the images that the policy pass does not skip
    (their advantage is 0), known after a run only."""
    p, steps = params.train_rtdmd, params.model.num_steps
    images, (rolled, repeated) = p.prompts_per_epoch * p.group_size, passes(p, steps)
    score = prices.decode + prices.score * len(p.rewards)
    learning = prices.two + prices.backward
    policy = p.weights.policy > 0 or p.weights.reference_kl > 0 or p.matching_path == "reward"
    anchor = prices.one if p.weights.reference_kl > 0 else 0.0
    whole = p.weights.reference_kl > 0 or p.matching_path == "reward"
    fake = (prices.one + prices.backward) * (3 if p.consistency.weight > 0 else 1)
    return {
        "roll_out": prices.two * rolled,
        "score": images * score,
        "credit": images * score * _credited(p, steps),
        "policy": repeated * (learning + anchor) * (1.0 if whole else kept) if policy else 0.0,
        "nft": images * learning if p.weights.nft > 0 else 0.0,
        "last_step": _last_step(params, prices),
        "fake": p.fake_updates_per_epoch * min(p.fake_batch_size, images) * fake,
    }


def passes(p: TrainRtdmdParams, steps: int) -> tuple[float, float]:
    """Mean images that go through the generator in a roll-out of K steps and in the policy's pass over its trained
    steps, over the subsets of trained steps: while a group has shared all noise, one of its images is run."""
    images = p.prompts_per_epoch * p.group_size
    subsets = list(combinations(p.candidate_steps, p.trained_steps))
    rolled = policy = 0.0
    for trained in subsets:
        equal = p.share_initial
        for k in range(steps):
            run = images / p.group_size if equal else images
            rolled, policy = rolled + run, policy + (run if k in trained else 0.0)
            equal = equal and p.share_noise and k not in trained
    return rolled / len(subsets), policy / len(subsets)


def _credited(p: TrainRtdmdParams, steps: int) -> float:
    """Mean number of levels whose foreseen images are scored."""
    from rtdmd.flow.credit import scored_steps  # imports torch, which a plan of the sweep does without

    subsets = list(combinations(p.candidate_steps, p.trained_steps))
    return sum(len(scored_steps(trained, steps - 1, p.credit)) for trained in subsets) / len(subsets)


def _last_step(params: Params, prices: Prices) -> float:
    """The terms of matching and back-propagation on B images."""
    p, steps = params.train_rtdmd, params.model.num_steps
    images = p.prompts_per_epoch * p.group_size
    rows = images if p.matching_path == "reward" else min(p.last_step_batch_size, images)
    cost = 0.0
    if p.weights.backprop > 0:
        differentiable = sum(reward.differentiable for reward in p.rewards)
        cost += prices.two + prices.decode + prices.score * differentiable + prices.decode_backward + prices.backward
    if p.weights.matching > 0:
        cost += prices.one + guided(params) * prices.teacher
        own = 1.0  # forward passes of its own; back-propagation's serves both where both act at the last step
        if p.matching_path == "whole_chain":
            own = 2.0 * steps
        elif p.weights.backprop > 0 and p.backprop_at == "last_step":
            own = (steps - 1) / steps if p.matching_path == "random_step" else 0.0
        cost += own * prices.two + prices.backward * (steps if p.matching_path == "whole_chain" else 1)
        if p.matching_gain > 0:
            cost += prices.decode + prices.score * len(p.rewards)
    return rows * cost


def guided(params: Params) -> int:
    """Passes of the teacher for one guided velocity: two for classifier-free guidance."""
    return 1 if params.model.guidance == 1 or params.model.family == "flux1" else 2


def cost(params: Params, stage: str, prices: Prices = WORLD) -> float:
    """The whole training stage, as params has it."""
    if stage == "train_acdmd":
        return params.train_acdmd.iterations * stage_one_iteration(params, prices)
    return params.train_rtdmd.epochs * sum(stage_two_epoch(params, prices).values())


def length_within(params: Params, stage: str, budget: float, prices: Prices = WORLD) -> int:
    """Iterations or epochs of the stage that a budget pays for, to the nearest; at least one generator update."""
    if stage == "train_acdmd":
        least, unit = params.train_acdmd.generator_every, stage_one_iteration(params, prices)
    else:
        least, unit = 1, sum(stage_two_epoch(params, prices).values())
    return max(least, round(budget / unit))
