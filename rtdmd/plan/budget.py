"""What a method spends, in forward passes of the generator: the currency in which the comparison is fair.

Every pass of a network over one image counts with its price relative to one forward pass of the stage-two generator
(the transformer with two adapters). Prices were measured on the embedded world, batches of 48, one thread: 2.66 ms for
that pass. Text embedding, optimizer and averages are left out; wall seconds stand beside the budget in the results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rtdmd.config import Params
from rtdmd.plan.passes import Rows, acdmd_rows, guided_passes, rtdmd_parts, scaled, summed


@dataclass(frozen=True)
class Prices:
    """Passes over one image in forward passes of the stage-two generator."""

    teacher: float = 0.63  # no adapter
    one: float = 0.87  # one adapter, alone or on layers with another merged in
    two: float = 1.0  # one adapter on another
    backward: float = 1.4  # through the transformer to an adapter
    decode: float = 1.26
    score: float = 0.13  # one reward; CLIP 0.12, the verifier 0.14
    decode_backward: float = 0.9  # from a reward through the decoder to the latent


WORLD = Prices()


def stage_one_iteration(params: Params, prices: Prices = WORLD) -> float:
    """Mean cost of one iteration of stage one."""
    return priced(acdmd_rows(params), params, "train_acdmd", prices)


def stage_two_epoch(params: Params, prices: Prices = WORLD, frac_nonzero: float = 1.0) -> dict[str, float]:
    """Mean cost of one epoch of stage two by part; ``frac_nonzero``: share of the images that the policy pass does not
    skip (their advantage is 0), known after a run only."""
    return {
        name: priced(rows, params, "train_rtdmd", prices)
        for name, rows in parts_without_skipped(params, frac_nonzero).items()
    }


def parts_without_skipped(params: Params, frac_nonzero: float) -> dict[str, Rows]:
    """The rows of an epoch of stage two by part, where the policy pass skips all but the share ``frac_nonzero`` of the
    images: it skips none of them where another term needs its pass."""
    p = params.train_rtdmd
    parts = rtdmd_parts(params)
    if p.weights.reference_kl == 0 and p.matching_path != "reward":
        parts["policy"] = scaled(parts["policy"], frac_nonzero)
    return parts


class Counts(NamedTuple):
    """Images through the transformer, once for each pass; a guided velocity is two passes."""

    forward: float
    backward: float


def update_counts(params: Params, stage: str, frac_nonzero: float = 1.0) -> Counts:
    """What an update of a stage, an iteration or an epoch, takes through the transformer, whatever role passes it;
    ``frac_nonzero`` as in `stage_two_epoch`."""
    rows = (
        acdmd_rows(params) if stage == "train_acdmd" else summed(*parts_without_skipped(params, frac_nonzero).values())
    )
    passes = {"teacher": guided_passes(params), "unguided-teacher": 1}
    passes |= dict.fromkeys(("generator", "fake", "reference", "surrogate"), 1)
    forward = sum(count * rows.get(f"{role} forward", 0.0) for role, count in passes.items())
    return Counts(forward, sum(rows.get(f"{role} backward", 0.0) for role in passes))


def priced(rows: Rows, params: Params, stage: str, prices: Prices) -> float:
    """The cost of the passes that `rtdmd.plan.passes` counts in a stage."""
    p = params.train_rtdmd
    second = stage == "train_rtdmd"
    rewards = p.rewards if second else ()
    on_another = prices.one if p.stage_one_adapters == "merged" else prices.two  # an adapter on top of stage one's
    by_pass = {
        "generator forward": on_another if second else prices.one,
        "reference forward": prices.teacher if p.stage_one_adapters == "merged" else prices.one,
        "fake forward": on_another if second and p.fake_adapter == "new" else prices.one,
        "teacher forward": guided_passes(params) * prices.teacher,
        "unguided-teacher forward": prices.teacher,
        "surrogate forward": prices.one,
        "surrogate backward": prices.backward,
        "generator backward": prices.backward,
        "fake backward": prices.backward,
        "decode forward": prices.decode,
        "decode backward": prices.decode_backward,
        "score forward": prices.score * len(rewards),
        "pathwise forward": prices.score * sum(reward.differentiable for reward in rewards),
        "pathwise backward": 0.0,  # in decode_backward
    }
    return sum(count * by_pass[name] for name, count in rows.items())


def cost(params: Params, stage: str, prices: Prices = WORLD) -> float:
    if stage == "train_acdmd":
        return params.train_acdmd.iterations * stage_one_iteration(params, prices)
    return params.train_rtdmd.epochs * sum(stage_two_epoch(params, prices).values())


def length_within(params: Params, stage: str, budget: float, prices: Prices = WORLD) -> int:
    """Iterations or epochs of the stage that a budget pays for, to the nearest; at least one generator update."""
    if stage == "train_acdmd":
        least = params.train_acdmd.generator_every
        unit = stage_one_iteration(params, prices)
    else:
        least = 1
        unit = sum(stage_two_epoch(params, prices).values())
    return max(least, round(budget / unit))
