"""Stage two's parts: grouped roll-outs with SubGRPO's shared noise, advantages, and the gradient of each loss term.

Shapes: N images = prompts x group size, K steps, D = C H W, M trained steps. Every pass over the N images goes in
micro-batches, always in the same order, so that only memory and rounding depend on their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rtdmd.flow.cps import cps_mean_std, gaussian_log_prob, published_log_prob
from rtdmd.flow.matching import dmd_loss, matching_rewards
from rtdmd.flow.path import x0_from_velocity
from rtdmd.flow.policy import clipped_policy_loss, gaussian_kl, group_advantages, subset_factor
from rtdmd.flow.precision import require_finite
from rtdmd.rewards import Reward
from rtdmd.rewards.panel import Batch
from rtdmd.rng import integers
from rtdmd.train.accumulate import Gradients, micro_batches
from rtdmd.train.diagnose import at_level
from rtdmd.train.terms import Draws, Renoised, Velocities, matching_direction, renoised

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Backbone, Conditioning
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.train.engine import Learner


Weigh = Callable[[slice, Tensor, Tensor], Tensor]
"""(rows of a roll-out, their images x̂_0, their matching directions g (B, C, H, W)) -> a weight for each (B,)."""
CLIP_SHARE = 0.1  # of the clip range, which rounding may take at the first update of an epoch


@dataclass(frozen=True)
class Rollout:
    """A finished roll-out of N images: states[k] is x at sigmas[k] (K+1 of them), means[k] and stds[k] of the K-1
    stochastic transitions, conditioning, each image's prompt record and group number, and whether the images of a
    group are still equal at states[k] (K of them)."""

    states: list[Tensor]
    means: list[Tensor]
    stds: list[Tensor]
    sigmas: Tensor
    cond: Conditioning
    records: list[dict[str, Any]]
    groups: Tensor
    equal: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def take(self, rows: Sequence[int]) -> Rollout:
        """The chosen images, in the chosen order."""
        states, means, stds = ([x[list(rows)] for x in part] for part in (self.states, self.means, self.stds))
        records, groups = [self.records[row] for row in rows], self.groups[list(rows)]
        return Rollout(states, means, stds, self.sigmas, self.cond.index(rows), records, groups, self.equal)

    def level(self, k: int, rows: slice) -> Tensor:
        """σ_k for the images of ``rows``, (B,)."""
        return self.sigmas[k].expand(len(self.groups[rows]))

    def owners(self, k: int) -> Tensor:
        """The row whose pass at step k stands for each image, (N,): its group's first where the group is still equal,
        its own otherwise."""
        rows = torch.arange(len(self))
        if not self.equal[k]:
            return rows
        _, group = torch.unique(self.groups, return_inverse=True)
        first = rows.new_full((int(group.max()) + 1,), len(self)).scatter_reduce(0, group, rows, "amin")
        return first[group]


@torch.no_grad()
def roll_out(
    roles: Velocities,
    cond: Conditioning,
    records: list[dict[str, Any]],
    groups: Tensor,
    sigmas: Tensor,
    trained: Sequence[int],
    p: TrainRtdmdParams,
    eta: float,
    draws: Draws,
) -> Rollout:
    """Run the whole chain for N images (method, stage two, steps 1 and 3): fresh noise at trained steps, the group's
    shared noise at the others. While a group has shared all noise its images are equal, and one of them is run (as
    the policy pass will, so that the two agree to the last bit)."""
    initial = draws.group_normal(groups, "initial") if p.share_initial else draws.normal("initial")
    states, means, stds = [initial], [], []
    equal = [p.share_initial]
    for k, (sigma, tau) in enumerate(pairwise(sigmas)):
        x, last, share = states[-1], k == len(sigmas) - 2, p.share_noise and k not in trained
        copies = p.group_size if equal[k] else 1
        one, one_cond = x[::copies], cond.index(slice(None, None, copies))
        v = torch.cat(
            [
                roles.velocity("generator", one[rows], sigma.expand(len(one[rows])), one_cond.index(rows))
                for rows in micro_batches(len(one), p.micro_batch)
            ]
        ).repeat_interleave(copies, 0)
        require_finite(f"the generator's velocity at step {k}", v)
        mean, std = cps_mean_std(x, v, sigma.expand(len(x)), tau.expand(len(x)), eta)
        if last:
            states.append(mean)
            break
        equal.append(equal[k] and share)
        noise = draws.group_normal(groups, f"transition-{k}") if share else draws.normal(f"transition-{k}")
        states.append(mean + std[:, None, None, None] * noise)
        means.append(mean)
        stds.append(std)
    return Rollout(states, means, stds, sigmas, cond, records, groups, tuple(equal))


@torch.no_grad()
def final_images(rollout: Rollout, backbone: Backbone, size: int) -> Iterator[Batch]:
    """The roll-out's final images as rewards take them: (B, 3, H, W) with prompts and metadata, B at most ``size``."""
    for rows in micro_batches(len(rollout), size):
        images = require_finite("the decoder's images", backbone.decode(rollout.states[-1][rows]))
        yield images, *describe(rollout.records[rows])


def describe(records: Sequence[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any] | None]]:
    """Prompts and metadata of records."""
    return [record["prompt"] for record in records], [record["metadata"] for record in records]


def advantages_of(scores: Mapping[str, Tensor], groups: Tensor, p: TrainRtdmdParams) -> Tensor:
    """Advantages (N,) of the rewards that the policy gradient sees (method, stage two, step 2)."""
    seen = [spec for spec in p.rewards if spec.policy is not False]
    rewards = torch.stack([scores[spec.name] for spec in seen]).float()
    weights = torch.tensor([spec.weight for spec in seen])
    return group_advantages(
        rewards,
        groups,
        weights,
        baseline=p.baseline,
        std=p.advantage_std,
        eps=p.advantage_eps,
        clip=p.advantage_clip,
    )


@dataclass(frozen=True)
class Held:
    """Distribution matching as a reward of each image, (N,), and the term to which its policy gradient belongs."""

    rewards: Tensor
    term: Gradients


def policy_gradient(
    roles: Velocities,
    learner: Learner,
    rollout: Rollout,
    advantages: Tensor,
    trained: Sequence[int],
    p: TrainRtdmdParams,
    eta: float,
    held: Held | None = None,
    everyone: Tensor | None = None,
) -> tuple[Gradients, Gradients, dict[str, float]]:
    """Gradients of the clipped policy loss and of the reference KL over the trained steps (method, stage two, step 4).

    Images of zero advantage are left out of the policy term only, and of the passes where it is the only term; a group
    whose images are still equal at a step has one pass. ``held`` adds the policy gradient of matching as a reward to
    its term, unbiased for all candidate steps. ``everyone``: the advantages of all processes' images, whose gradients
    add up; None where these are all. Values: clip fraction, the largest |ratio - 1|, which is 0 at the first update of
    an epoch, and the policy gradient's norm by level.
    """
    policy, anchor = Gradients(learner), Gradients(learner)
    everyone = advantages if everyone is None else everyone
    kept, all_kept = (
        each.cpu() != 0 if p.drop_zero_advantage else torch.ones(len(each), dtype=torch.bool)
        for each in (advantages, everyone)
    )
    total, divisor = len(everyone), max(1, int(all_kept.sum()))
    with_anchor = p.weights.reference_kl > 0
    needed = torch.ones_like(kept) if with_anchor or held is not None else kept
    # The public code averages over the trained steps; the paper's (K-1)/M makes their sum unbiased for all of them.
    whole = subset_factor(len(p.candidate_steps) + 1, len(trained))
    factor = whole if p.subset_factor else 1 / len(trained)
    values = {"kept": all_kept.float().mean().item(), "clip_fraction": 0.0, "ratio_error": 0.0}
    passes = 0
    for k in trained if p.weights.policy > 0 or with_anchor or held is not None else ():
        before = policy.total
        for owner, rows, of in shared_passes(rollout.owners(k), needed, p.micro_batch):
            x, x_next = rollout.states[k][rows], rollout.states[k + 1][rows]
            sigma, tau = rollout.sigmas[k].expand(len(rows)), rollout.sigmas[k + 1].expand(len(rows))
            start, level = rollout.states[k][owner], rollout.sigmas[k].expand(len(owner))
            cond = rollout.cond.index(owner)
            v = roles.velocity("generator", start, level, cond)[of]
            mean, std = cps_mean_std(x, v, sigma, tau, eta)
            if p.density == "gaussian":
                new, old = gaussian_log_prob(x_next, mean, std), gaussian_log_prob(x_next, rollout.means[k][rows], std)
            else:
                new, old = published_log_prob(x_next, mean), published_log_prob(x_next, rollout.means[k][rows])
            loss, ratio, clipped = clipped_policy_loss(new, old, advantages[rows], p.clip_range)
            term = factor * (loss * kept[rows].to(loss)).sum() / divisor
            policy.add(term, retain_graph=with_anchor or held is not None)
            if held is not None:
                pull, *_ = clipped_policy_loss(new, old, held.rewards[rows], p.clip_range)
                held.term.add(whole * pull.sum() / total, retain_graph=with_anchor)
            if with_anchor:
                with torch.no_grad():
                    v_ref = roles.velocity("reference", start, level, cond)[of]
                    mean_ref, _ = cps_mean_std(x, v_ref, sigma, tau, eta)
                anchor.add(gaussian_kl(mean, mean_ref, std).sum() / total / len(trained))
            values["clip_fraction"] += clipped.item()
            values["ratio_error"] = max(values["ratio_error"], (ratio - 1).abs().max().item())
            passes += 1
        values |= at_level({"grad_policy": policy.norm(before)}, ["grad_policy"], rollout.sigmas[k].item())
    values["clip_fraction"] /= max(1, passes)
    return policy, anchor, values


def shared_passes(owners: Tensor, needed: Tensor, size: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """The micro-batches that pass every needed image (N,): rows to run, the needed rows they stand for, and which of
    the run rows each of these is. ``owners`` (N,): the row that stands for each image.

    Micro-batches are filled up with other owners to ``size``: a pass over fewer images has other kernels, whose
    rounding in half precision would move the policy ratio off 1.
    """
    wanted = torch.unique(owners[needed]).tolist()
    chosen, others = set(wanted), torch.unique(owners).tolist()
    run = wanted + [row for row in others if row not in chosen][: -len(wanted) % size]
    for batch in micro_batches(len(run), size):
        place = {row: i for i, row in enumerate(run[batch])}
        rows = [row for row, owner in enumerate(owners.tolist()) if owner in place and needed[row]]
        yield run[batch], rows, [place[int(owners[row])] for row in rows]


def require_on_policy(ratio_error: float, clip_range: float) -> None:
    """FloatingPointError unless max |ratio - 1| at the first update of an epoch is at most a tenth of the clip range.

    The generator has not moved since the roll-out, so the ratio is 1 by construction and anything else is an error of
    computation. A tenth of the range leaves nine tenths to what clipping is for; beyond it images are clipped, and
    lose their gradient, by rounding.
    """
    if not ratio_error <= CLIP_SHARE * clip_range:
        raise FloatingPointError(
            f"the policy ratio is {ratio_error:.2g} off 1 at the first update of an epoch, above {CLIP_SHARE:g} x"
            f" clip_range: {clip_range:g}; roll-out and policy pass disagree about the transition means: a kernel"
            " gives other numbers at a second call (model.dtype: float32 shows it), or clip_range is below the"
            " rounding of train_rtdmd.density"
        )


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
) -> tuple[Gradients, Gradients, Held | None, dict[str, float]]:
    """Gradients of reward back-propagation through the deterministic last step, and of distribution matching (method,
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
    stop = last
    if p.matching_path == "random_step":
        stop = integers(0, last + 1, draws.seed, draws.stream, draws.step, "matching-stop")
    seen = last  # whose x̂_0 the rewards see
    if p.backprop_at == "random_step":
        seen = integers(0, last + 1, draws.seed, draws.stream, draws.step, "backprop-step")
    point = renoised(rollout.states[stop + 1], rollout.sigmas[stop + 1].expand(count), p.renoise, draws)
    for rows in micro_batches(count, p.micro_batch):
        cond, share = rollout.cond.index(rows), len(rollout.groups[rows]) / (total or count)
        if (p.weights.backprop > 0 and seen == last) or stop == last:
            x0 = one_step(roles, rollout, rows, last, rollout.states[last][rows], eta)
        if p.weights.backprop > 0:
            images = backbone.decode(x0 if seen == last else estimate(roles, rollout, rows, seen))
            prompts, metadata = describe(rollout.records[rows])
            scores = [weight * reward.score(images, prompts, metadata) for weight, reward in rewards]
            loss = torch.relu(p.backprop_margin - torch.stack(scores).sum(0)).mean() * share
            backprop.add(loss, retain_graph=p.weights.matching > 0 and seen == stop == last)
            values["backprop"] += loss.item()
            del images, scores, loss  # their graphs are larger than the transformer's
        if p.weights.matching > 0:
            here = Renoised(*(field[rows] for field in vars(point).values()))
            with torch.no_grad():
                v_fake = roles.velocity("fake", here.x_t, here.t, cond)
                v_teacher = roles.velocity("teacher", here.x_t, here.t, cond, **guided)
            part = draws.of(draws.samples[rows])
            direction = matching_direction(here, v_fake, v_teacher, eta, part, p.normalise_matching)
            if p.matching_path == "whole_chain":
                sample = whole_chain(roles, rollout, rows, eta)
            else:
                x = rollout.states[stop][rows]
                sample = x0 if stop == last else one_step(roles, rollout, rows, stop, x, eta)
            loss = dmd_loss(sample, direction)
            if weigh is not None:
                loss = loss * weigh(rows, sample.detach(), direction)
            loss = loss.mean() * share
            matching.add(loss)
            directions.append(direction)
            values["matching"] += loss.item()
            values["gap"] += (v_fake - v_teacher).square().mean().item() * share
    held = None
    if p.matching_path == "reward":
        held = Held(matching_rewards(rollout.states[-1], torch.cat(directions), rollout.groups), matching)
    return matching, backprop, held, values


def combine(terms: Mapping[str, tuple[float, Gradients]], scaling: str) -> tuple[list[Tensor], dict[str, float]]:
    """Weighted sum of the terms' gradients, each brought to norm 1 first where ``scaling`` is ``unit_norm``; and their
    norms. A term of weight 0 or without gradient is left out."""
    norms = {name: gradients.norm() for name, (_, gradients) in terms.items()}
    out: list[Tensor] | None = None
    for name, (weight, gradients) in terms.items():
        if gradients.total is None or weight == 0 or norms[name] == 0:
            continue
        factor = weight / norms[name] if scaling == "unit_norm" else weight
        scaled = [factor * g for g in gradients.total]
        out = scaled if out is None else [a + b for a, b in zip(out, scaled, strict=True)]
    if out is None:
        raise FloatingPointError("no loss term has a gradient: every advantage is zero and no other term is weighted")
    return out, {f"grad_{name}": value for name, value in norms.items()}
