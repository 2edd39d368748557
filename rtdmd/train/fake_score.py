"""Stage two's updates of the fake score from a roll-out that is there already (Algorithm 1, second half, step 6).

Shapes: B of the roll-out's images; micro-batches as in `rtdmd.train.reinforce`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from rtdmd.common.rng import integers, permutation
from rtdmd.train.accumulate import Gradients, micro_batches
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.losses import Draws, Velocities, consistency_loss, fake_ambient_loss, renoised
from rtdmd.train.reinforce import Rollout

if TYPE_CHECKING:
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.train.adapters import Learner


def fake_update(
    roles: Velocities,
    learner: Learner,
    rollout: Rollout,
    p: TrainRtdmdParams,
    eta: float,
    draws: Draws,
    update: int,
    ranks: Ranks,
) -> dict[str, float]:
    """Update number ``update`` of an epoch: ambient flow matching on ``p.fake_batch_size`` images of all processes,
    taken as they end or, as ``p.fake_start`` says, at a random level of their chains. ``rollout`` is this process's."""
    total = p.prompts_per_epoch * p.group_size
    chosen = permutation(total, draws.seed, draws.stream, draws.step, "fake-rows", update)[: p.fake_batch_size]
    k = len(rollout.sigmas) - 1
    if p.fake_start == "chain":
        k = integers(1, k + 1, draws.seed, draws.stream, draws.step, "fake-level", update)
    rows, own = draws.among(chosen, f"{draws.stream}-fake-{update}")
    names = ["fake_ambient"] + ["fake_consistency"] * (p.consistency.weight > 0)
    values, gradients = dict.fromkeys(names, 0.0), Gradients(learner, term=" + ".join(names))
    with ranks.sync_errors():
        for part in micro_batches(len(rows), p.micro_batch):
            found = fake_losses(roles, rollout.take(rows[part]), k, p, eta, own.of(own.samples[part]))
            share = len(rows[part]) / len(chosen)
            loss = found[0] if len(found) == 1 else found[0] + p.consistency.weight * found[1]
            gradients.add(share * loss)
            for name, value in zip(names, found, strict=True):
                values[name] += share * value.item()
    gradients.all_reduce(ranks)
    return ranks.all_reduce_sum(values) | {"fake_grad_norm": gradients.step()}


def fake_losses(
    roles: Velocities, rollout: Rollout, k: int, p: TrainRtdmdParams, eta: float, draws: Draws
) -> list[Tensor]:
    """The ambient loss on states[k] of the roll-out and, where it is weighted, the consistency term; scalars."""
    point = renoised(rollout.states[k], rollout.sigmas[k].expand(len(rollout)), p.renoise, draws)
    v_fake = roles.velocity("fake", point.x_t, point.t, rollout.cond)
    losses = [fake_ambient_loss(point, v_fake, p.weighting, p.weight_clamp).mean()]
    if p.consistency.weight > 0:
        losses.append(consistency_loss(roles, point, v_fake, rollout.cond, p.consistency, eta, draws).mean())
    return losses
