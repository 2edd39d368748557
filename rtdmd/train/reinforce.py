"""Stage two's stochastic steps: grouped roll-outs with SubGRPO's shared noise, advantages, and the policy gradient.

Shapes: N images = prompts x group size, K steps, D = C H W, M trained steps. Every pass over the N images goes in
micro-batches, always in the same order, so that only memory and rounding depend on their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rtdmd.flow.cps import cps_mean_std, gaussian_log_prob, published_log_prob
from rtdmd.flow.policy import clipped_policy_loss, gaussian_kl, group_advantages, subset_factor
from rtdmd.flow.precision import require_finite
from rtdmd.rewards.panel import Batch
from rtdmd.train.accumulate import Gradients, micro_batches
from rtdmd.train.engine.diagnostics import at_level
from rtdmd.train.losses import Draws, Velocities

if TYPE_CHECKING:
    from rtdmd.backbones.protocol import Backbone, Conditioning
    from rtdmd.config.train_rtdmd import TrainRtdmdParams
    from rtdmd.train.adapters import Learner

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
class MatchingReward:
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
    held: MatchingReward | None = None,
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
        for shared in shared_passes(rollout.owners(k), needed, p.micro_batch):
            rows, x_next = shared.rows, rollout.states[k + 1][shared.rows]
            mean, std = transition(roles, "generator", rollout, k, shared, eta)
            new = log_prob(x_next, mean, std, p.density)
            old = log_prob(x_next, rollout.means[k][rows], std, p.density)
            loss, ratio, clipped = clipped_policy_loss(new, old, advantages[rows], p.clip_range)
            term = factor * (loss * kept[rows].to(loss)).sum() / divisor
            policy.add(term, retain_graph=with_anchor or held is not None)
            if held is not None:
                pull, *_ = clipped_policy_loss(new, old, held.rewards[rows], p.clip_range)
                held.term.add(whole * pull.sum() / total, retain_graph=with_anchor)
            if with_anchor:
                with torch.no_grad():
                    mean_ref, _ = transition(roles, "reference", rollout, k, shared, eta)
                anchor.add(gaussian_kl(mean, mean_ref, std).sum() / total / len(trained))
            values["clip_fraction"] += clipped.item()
            values["ratio_error"] = max(values["ratio_error"], (ratio - 1).abs().max().item())
            passes += 1
        values |= at_level({"grad_policy": policy.norm(before)}, ["grad_policy"], rollout.sigmas[k].item())
    values["clip_fraction"] /= max(1, passes)
    return policy, anchor, values


class SharedPass(NamedTuple):
    """A micro-batch of a policy pass: the rows that are run, the needed rows they stand for, and which of the run rows
    stands for each of these."""

    run: list[int]
    rows: list[int]
    of: list[int]


def shared_passes(owners: Tensor, needed: Tensor, size: int) -> Iterator[SharedPass]:
    """The micro-batches that pass every needed image (N,). ``owners`` (N,): the row that stands for each image.

    Micro-batches are filled up with other owners to ``size``: a pass over fewer images has other kernels, whose
    rounding in half precision would move the policy ratio off 1.
    """
    wanted = torch.unique(owners[needed]).tolist()
    chosen, others = set(wanted), torch.unique(owners).tolist()
    run = wanted + [row for row in others if row not in chosen][: -len(wanted) % size]
    for batch in micro_batches(len(run), size):
        place = {row: i for i, row in enumerate(run[batch])}
        rows = [row for row, owner in enumerate(owners.tolist()) if owner in place and needed[row]]
        yield SharedPass(run[batch], rows, [place[int(owners[row])] for row in rows])


def transition(
    roles: Velocities, role: str, rollout: Rollout, k: int, shared: SharedPass, eta: float
) -> tuple[Tensor, Tensor]:
    """Mean (B, C, H, W) and standard deviation (B,) of a role's transition at step k, for the rows of ``shared``."""
    level = rollout.sigmas[k].expand(len(shared.run))
    v = roles.velocity(role, rollout.states[k][shared.run], level, rollout.cond.index(shared.run))[shared.of]
    sigma, tau = (rollout.sigmas[i].expand(len(shared.rows)) for i in (k, k + 1))
    return cps_mean_std(rollout.states[k][shared.rows], v, sigma, tau, eta)


def log_prob(x: Tensor, mean: Tensor, std: Tensor, density: str) -> Tensor:
    """Log-density (B,) of a transition to x (B, C, H, W), as ``p.density`` has it."""
    return gaussian_log_prob(x, mean, std) if density == "gaussian" else published_log_prob(x, mean)


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
