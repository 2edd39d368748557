"""Stage two's last step: reward back-propagation through the deterministic step, and distribution matching.

Shapes: N images of a roll-out, K steps; micro-batches as in `rtdmd.train.reinforce`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rtdmd.common.rng import integers
from rtdmd.flow.cps import cps_mean_std
from rtdmd.flow.matching import dmd_loss, matching_rewards
from rtdmd.flow.path import x0_from_velocity
from rtdmd.rewards.protocol import Reward
from rtdmd.train.accumulate import Gradients, micro_batches
from rtdmd.train.losses import Draws, Renoised, Velocities, matching_direction, renoised
from rtdmd.train.reinforce import MatchingReward, Rollout, describe

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Backbone, Conditioning
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.train.adapters import Learner

Weigh = Callable[[slice, Tensor, Tensor], Tensor]
"""(rows of a roll-out, their images x̂_0, their matching directions g (B, C, H, W)) -> a weight for each (B,)."""


def whole_chain(roles: Velocities, rollout: Rollout, rows: slice, eta: float) -> Tensor:
    """x̂_0 (B, C, H, W) of ``rows`` with the gradient of all K steps, the roll-out's noises fixed.

    Each step's activations are dropped and computed again during the backward pass, so the memory is that of one step
    and K latents; the time is that of 2 K forward and K backward passes.
    """
    x = rollout.states[0][rows]
    for k in range(len(rollout.sigmas) - 1):
        # No step draws a number, so there is no state of a generator to keep.
        x = checkpoint(one_step, roles, rollout, rows, k, x, eta, use_reentrant=False, preserve_rng_state=False)
    return x


def one_step(roles: Velocities, rollout: Rollout, rows: slice, k: int, x: Tensor, eta: float) -> Tensor:
    """x_{k+1} (B, C, H, W) from x at step k of ``rows``, the roll-out's noise fixed."""
    sigma, tau = rollout.level(k, rows), rollout.level(k + 1, rows)
    v = roles.velocity("generator", x, sigma, rollout.cond.index(rows))
    if k == len(rollout.sigmas) - 2:
        return x0_from_velocity(x, v, sigma)
    return cps_mean_std(x, v, sigma, tau, eta)[0] + (rollout.states[k + 1][rows] - rollout.means[k][rows])


def estimate(roles: Velocities, rollout: Rollout, rows: slice, k: int) -> Tensor:
    """x̂_0 (B, C, H, W) that the generator foresees at step k of ``rows``."""
    x, sigma = rollout.states[k][rows], rollout.level(k, rows)
    return x0_from_velocity(x, roles.velocity("generator", x, sigma, rollout.cond.index(rows)), sigma)


def drawn_steps(p: TrainRtdmdParams, last: int, draws: Draws) -> tuple[int, int]:
    """The step through which matching goes, and the one whose x̂_0 the rewards see, 0 to ``last``."""
    through = seen = last
    if p.matching_path == "random_step":
        through = integers(0, last + 1, draws.seed, draws.stream, draws.step, "matching-stop")
    if p.backprop_at == "random_step":
        seen = integers(0, last + 1, draws.seed, draws.stream, draws.step, "backprop-step")
    return through, seen


def reward_loss(
    x0: Tensor,
    records: Sequence[dict[str, Any]],
    rewards: Sequence[tuple[float, Reward]],
    backbone: Backbone,
    margin: float,
) -> Tensor:
    """relu(m - Σ w r) of the decoded images x̂_0 (B, C, H, W), averaged."""
    images, (prompts, metadata) = backbone.decode(x0), describe(records)
    scores = [weight * reward.score(images, prompts, metadata) for weight, reward in rewards]
    return torch.relu(margin - torch.stack(scores).sum(0)).mean()


def direction_and_gap(
    roles: Velocities,
    point: Renoised,
    cond: Conditioning,
    guided: Mapping[str, Any],
    eta: float,
    draws: Draws,
    normalise: bool,
) -> tuple[Tensor, float]:
    """The matching direction g (B, C, H, W) at renoised images, and the mean square by which the fake score's velocity
    differs from the teacher's."""
    with torch.no_grad():
        v_fake = roles.velocity("fake", point.x_t, point.t, cond)
        v_teacher = roles.velocity("teacher", point.x_t, point.t, cond, **guided)
    direction = matching_direction(point, v_fake, v_teacher, eta, draws, normalise)
    return direction, (v_fake - v_teacher).square().mean().item()


def last_step_gradients(
    roles: Velocities,
    learner: Learner,
    rollout: Rollout,
    rewards: Sequence[tuple[float, Reward]],
    backbone: Backbone,
    p: TrainRtdmdParams,
    guided: Mapping[str, Any],
    eta: float,
    draws: Draws,
    total: int | None = None,
    weigh: Weigh | None = None,
) -> tuple[Gradients, Gradients, MatchingReward | None, dict[str, float]]:
    """Gradients of distribution matching and of reward back-propagation through the deterministic last step (method,
    stage two, step 5), as ``p.matching_path`` says: at s = 0 through the last step or through the whole chain, or with
    its reward for the stochastic steps; or, as in stage one, through one step k ~ U{1..K} of the roll-out, at its
    lower level s. ``rewards``: (weight, differentiable reward), of the image or, as ``p.backprop_at`` says, of a random
    step's estimate x̂_0. ``total``: images of all processes, whose gradients and values add up; None where these are
    all. ``weigh``: a weight of each image's matching."""
    matching, backprop, directions = Gradients(learner), Gradients(learner), list[Tensor]()
    values = {"matching": 0.0, "backprop": 0.0, "gap": 0.0}
    if (p.weights.matching == 0 and p.weights.backprop == 0) or len(rollout) == 0:
        return matching, backprop, None, values
    count, last = len(rollout), len(rollout.sigmas) - 2
    through, seen = drawn_steps(p, last, draws)
    point = renoised(rollout.states[through + 1], rollout.sigmas[through + 1].expand(count), p.renoise, draws)
    matched = p.weights.matching > 0 and through == last and p.matching_path != "whole_chain"
    propagated = p.weights.backprop > 0 and seen == last
    for rows in micro_batches(count, p.micro_batch):
        share = len(rollout.groups[rows]) / (total or count)
        if matched or propagated:
            x0 = one_step(roles, rollout, rows, last, rollout.states[last][rows], eta)
        if p.weights.backprop > 0:
            image = x0 if propagated else estimate(roles, rollout, rows, seen)
            loss = reward_loss(image, rollout.records[rows], rewards, backbone, p.backprop_margin) * share
            backprop.add(loss, retain_graph=matched and propagated)
            values["backprop"] += loss.item()
            del loss  # its graph, of decoder and rewards, is larger than the transformer's
        if p.weights.matching > 0:
            here, own = Renoised(*(part[rows] for part in vars(point).values())), draws.of(draws.samples[rows])
            cond = rollout.cond.index(rows)
            direction, gap = direction_and_gap(roles, here, cond, guided, eta, own, p.normalise_matching)
            if p.matching_path == "whole_chain":
                sample = whole_chain(roles, rollout, rows, eta)
            elif matched:
                sample = x0
            else:
                sample = one_step(roles, rollout, rows, through, rollout.states[through][rows], eta)
            loss = dmd_loss(sample, direction)
            if weigh is not None:
                loss = loss * weigh(rows, sample.detach(), direction)
            loss = loss.mean() * share
            matching.add(loss)
            directions.append(direction)
            values["matching"] += loss.item()
            values["gap"] += gap * share
    held = None
    if p.matching_path == "reward":
        held = MatchingReward(matching_rewards(rollout.states[-1], torch.cat(directions), rollout.groups), matching)
    return matching, backprop, held, values
