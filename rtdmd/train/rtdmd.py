"""Stage two: reward-tilted distribution matching (Algorithm 1, second half).

`recipe: published` is the public code's algorithm and refuses any setting that is not its. Departures without a
parameter are in docs/verification.md.

Shapes: N images = M prompts x G images per group, K steps, D = C H W. A rollout holds this process's images, whole
groups, the images of a prompt next to each other; what is said to be of all processes has all N.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rtdmd.backbones.protocol import Backbone, Conditioning
from rtdmd.common.files import save_tensors, write_json
from rtdmd.common.rng import integers, permutation
from rtdmd.config import Params
from rtdmd.flow.cps import cps_mean_std, gaussian_log_prob, published_log_prob, velocity_slope
from rtdmd.flow.matching import dmd_loss, matching_rewards
from rtdmd.flow.path import require_finite, x0_from_velocity
from rtdmd.flow.policy import clipped_policy_loss, draw_step_subset, gaussian_kl, group_advantages, subset_factor
from rtdmd.pipeline.stage import Stage
from rtdmd.rewards.protocol import identities
from rtdmd.rewards.reward_models import MAX_WAITING, Batch, RewardModels
from rtdmd.train.adapters import AdapterBank, merge_stage_one, stage_two_stacks
from rtdmd.train.baseline_losses import (
    RENOISED,
    DmdrAnnealing,
    Weigh,
    from_renoised,
    gain_weights,
    relative_gradients,
    renoised_gradients,
    step_advantages,
    stepwise_policy_gradient,
)
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.engine.diagnostics import SaturationCounter, latent_values, signal_values
from rtdmd.train.gradients import Gradients, Terms, combine, shared_terms
from rtdmd.train.learner import EMA, Learner, ema_warmup_decay
from rtdmd.train.losses import (
    Draws,
    FakeScoreLoss,
    SharedPass,
    matching_direction,
    micro_batches,
    renoised,
    require_on_policy,
    require_renoise_time,
    scaled_guidance,
    shared_passes,
    teacher_guidance,
)
from rtdmd.train.rollout import CPU, ImageConditioning, Rollout, pinned_cat, to_device
from rtdmd.train.rounding import report_lost_update
from rtdmd.train.student_record import student_header
from rtdmd.train.surrogate import SurrogateReward

NAME = "train_rtdmd"
ADVANTAGE_EPS = 1e-4  # added to the standard deviation of rewards (public code)


class RtdmdTrainer:
    """The stage-two generator on stage one's, its fake score and rewards, and one epoch of Algorithm 1 (`step`)."""

    def __init__(
        self,
        params: Params,
        backbone: Backbone,
        rewards: RewardModels,
        null: Conditioning,
        ranks: Ranks | None = None,
        adapters: AdapterBank | None = None,
    ) -> None:
        """``null``: conditioning of the empty prompt, one row; ``adapters``: in place of fresh ones."""
        p = params.train_rtdmd
        self.params = params
        self.p = p
        self.eta = params.model.eta
        self.backbone = backbone
        self.rewards = rewards
        self.null = null
        self.ranks = ranks or Ranks()
        if adapters is None:
            adapters = open_adapters(params, backbone)
            merge_stage_one(adapters, params)
        self.adapters = adapters
        self.sigmas = backbone.sigmas(params.model.num_steps).to(backbone.device)  # (K+1,)
        levels = self.sigmas[1:]  # that s can have; where both terms start from images, 0 alone
        if p.fake_samples == "data" and p.matching_path == "last_step":
            levels = self.sigmas[-1:]
        require_renoise_time(NAME, p.renoise_time, levels)
        self.fake_loss = FakeScoreLoss(self.adapters, p, self.eta)
        weights = self.adapters.trainable("rtdmd")
        self.ema = EMA(weights, p.ema_decay)
        self.generator = Learner.adamw(
            weights,
            p.generator_optimizer,
            lr_decay=(p.lr_decay_fraction, p.epochs),
            ema=self.ema,
        ).named("generator", self.adapters.parameter_names("rtdmd"))
        own_fake = self.adapters.stacks["fake"][-1]
        self.fake = Learner.adamw(self.adapters.trainable(own_fake), p.fake_optimizer)
        self.fake.named("fake score", self.adapters.parameter_names(own_fake))
        self.surrogate = SurrogateReward(self.adapters, p) if p.weights.surrogate > 0 else None

    @property
    def learners(self) -> dict[str, Learner]:
        """What learns, by the name that checkpoints give it."""
        found = {"generator": self.generator, "fake": self.fake}
        return found if self.surrogate is None else found | {"surrogate": self.surrogate.learner}

    def variant(self, params: Params | None = None, adapters: AdapterBank | None = None) -> RtdmdTrainer:
        """The same learners and rewards under other settings of the stage, or with other adapters' velocities."""
        other = copy.copy(self)
        other.params = params or self.params
        other.p = other.params.train_rtdmd
        other.eta = other.params.model.eta
        other.adapters = adapters or self.adapters
        other.fake_loss = FakeScoreLoss(other.adapters, other.p, other.eta)
        return other

    def step(self, cond: Conditioning, records: list[dict[str, Any]], draws: Draws) -> dict[str, float]:
        """One epoch of Algorithm 1 on N = M prompts x G images: rollout, advantages, one generator update, and
        before or after it the fake score's. records and draws are those of this process's images, cond has a row for
        each of its prompts."""
        p = self.p
        ranks = self.ranks
        count = p.prompts_per_epoch * p.group_size
        groups = torch.arange(count) // p.group_size
        local = slice(draws.samples[0], draws.samples[-1] + 1)
        pixels = SaturationCounter()
        last_images = list(range(count))  # of the last step's terms; all where matching is a reward of every image
        if p.last_step_batch_size < count and p.matching_path != "reward":
            order = permutation(count, draws.seed, draws.stream, draws.step, "last-rows")
            last_images = order[: p.last_step_batch_size]
        last_rows, last_draws = draws.subset(last_images)
        terms = Terms(self.generator, dict(p.weights), shared_terms(p))

        with ranks.sync_errors():
            # 1. SubGRPO draws the stochastic steps to train. Roll out: elsewhere a group shares its noise.
            order = permutation(len(p.candidate_steps), draws.seed, draws.stream, draws.step, "subset")
            trained = [p.candidate_steps[i] for i in draw_step_subset(order, p.trained_steps)]
            rollout = self.roll_out(cond, records, groups[local], trained, draws)
        fake_values = self.fake_updates(rollout, draws) if p.update_order == "fake_first" else {}

        # 2. Rewards of the final images; a slow scorer goes on beside 3.
        with ranks.sync_errors(), self.rewards.scoring(self.images(rollout, pixels)) as scoring:
            # 3. Last step: distribution matching, and back-propagation of the differentiable rewards.
            chosen = rollout.take(last_rows)
            if p.matching_gain == 0:
                chain = from_renoised(self, chosen, last_draws) if p.last_step_from == "renoised" else chosen
                sums = self.last_step(chain, last_draws, terms, len(last_images))
            own_scores = scoring.scores(rollout.device)

        # 4. Advantages over the images of all processes, and the policy gradient of the trained steps.
        scores = {name: ranks.all_gather(own) for name, own in own_scores.items()}
        advantages = self.advantages(scores, groups)
        credited = step_advantages(self, rollout, scores, trained) if p.credit != "trajectory" else None
        # TDM-R1: the reward learns from the advantages, then the generator from it.
        learned = {} if self.surrogate is None else self.surrogate.update(self, rollout, advantages[local], draws)
        with ranks.sync_errors():
            if p.matching_gain > 0:  # GDMD: the rewards weigh the matching
                weigh = gain_weights(self, chosen, scores, last_draws.samples)
                sums = self.last_step(chosen, last_draws, terms, len(last_images), weigh)
            if credited is None:
                means = self.policy_gradient(rollout, advantages[local], trained, terms, advantages)
            else:
                means = stepwise_policy_gradient(self, rollout, credited, local, terms)
            if any(getattr(p.weights, name) > 0 for name in RENOISED):
                sums |= renoised_gradients(self, rollout, advantages[local], draws, terms)
            if self.surrogate is not None:
                sums["surrogate"] = self.surrogate.gradient(self, chosen, last_draws, terms, len(last_images))
        values = ranks.all_reduce(means, "mean")
        values |= ranks.all_reduce({"ratio_error": means["ratio_error"]}, "max")
        require_on_policy(values["ratio_error"], p.clip_range)
        values |= ranks.all_reduce(sums) | learned

        # 5. One update of the generator with the weighted sum of its terms over all processes, and of its EMA.
        parts = p.trained_steps + 1 if p.loss_average == "all_steps" else 1  # of the loss, one for each trained step
        gradient, norms = combine(terms.reduced(ranks, parts), p.gradient_scaling)
        values |= norms
        values["generator_grad_norm"] = self.generator.step(gradient)
        del gradient, terms  # each as large as the adapter, and the fake score's updates need the memory
        self.update_ema()

        # 6. Fake-score updates from the cached rollout, where they were not made before the generator's.
        values |= self.fake_updates(rollout, draws) if p.update_order == "generator_first" else fake_values

        values |= {f"reward_{name}": score.mean().item() for name, score in scores.items()}
        values["advantage_std"] = advantages.std().item()
        values["sample_std"] = ranks.global_std(rollout.states[-1])
        figures = latent_values(rollout.states[-1])
        if pixels.total:
            figures["image/saturated"] = pixels.saturated / pixels.total
        values |= ranks.all_reduce(figures, "mean")
        return values | signal_values(scores, groups, advantages)

    def update_ema(self) -> None:
        """The generator's average, after n updates of the generator, on its turn (``ema_every``, ``ema_warmup``)."""
        p = self.p
        n = self.generator.updates
        if (n + p.ema_warmup) % p.ema_every == 0:
            decay = ema_warmup_decay(n, p.ema_decay) if p.ema_warmup else p.ema_decay
            self.ema.update(decay**p.ema_repeats)

    @torch.no_grad()
    def roll_out(
        self,
        cond: Conditioning,
        records: list[dict[str, Any]],
        groups: Tensor,
        trained: Sequence[int],
        draws: Draws,
    ) -> Rollout:
        """Run the whole chain for the images of ``groups`` (N,): fresh noise at trained steps, the group's shared noise
        at the others. While a group has shared all noise its images are equal, and one of them is run (as the policy
        pass will, so that the two agree to the last bit). ``cond``: a row for each prompt, or for each image."""
        p = self.p
        device = self.sigmas.device
        texts = ImageConditioning.of_groups(cond, len(groups), device)
        on_host = replace(draws, device=CPU)
        x = pinned_cat([on_host.normal("initial", groups if p.share_initial else None)], device)
        states = [x]
        means = list[Tensor]()
        stds = list[Tensor]()
        equal = [p.share_initial]
        last = len(self.sigmas) - 2
        for k, (sigma, tau) in enumerate(pairwise(self.sigmas)):
            copies = p.group_size if equal[k] else 1
            share = p.share_noise and k not in trained
            noise = None if k == last else on_host.normal(f"transition-{k}", groups if share else None)
            parts = list[Tensor]()
            mean_parts = list[Tensor]()
            std_parts = list[Tensor]()
            for owners in micro_batches(len(x) // copies, p.micro_batch):
                rows = slice(owners.start * copies, owners.stop * copies)
                here = to_device(x[rows], device)
                one = here[::copies]
                one_cond = texts.index(slice(rows.start, rows.stop, copies))
                v = self.adapters.velocity("generator", one, sigma.expand(len(one)), one_cond)
                v = require_finite(f"the generator's velocity at step {k}", v).repeat_interleave(copies, 0)
                mean, std = cps_mean_std(here, v, sigma.expand(len(here)), tau.expand(len(here)), self.eta)
                after = mean if noise is None else mean + std[:, None, None, None] * to_device(noise[rows], device)
                parts.append(after.to(CPU))
                mean_parts.append(mean.to(CPU))
                std_parts.append(std.to(CPU))
            x = pinned_cat(parts, device)
            states.append(x)
            if k < last:
                means.append(pinned_cat(mean_parts, device))
                stds.append(pinned_cat(std_parts, device))
                equal.append(equal[k] and share)
        return Rollout(states, means, stds, self.sigmas, texts, records, groups, tuple(equal))

    @torch.no_grad()
    def images(self, rollout: Rollout, pixels: SaturationCounter | None = None) -> Iterator[Batch]:
        """The rollout's final images as rewards take them: micro-batches (B, 3, H, W) with prompts and metadata,
        counted in ``pixels``."""
        for rows in micro_batches(len(rollout), self.p.micro_batch):
            images = require_finite("the decoder's images", self.backbone.decode(rollout.state(-1, rows)))
            if pixels is not None:
                pixels.saturated += ((images <= 0) | (images >= 1)).sum().item()
                pixels.total += images.numel()
            yield self.batch(rollout, rows, images)

    def batch(self, rollout: Rollout, rows: slice, images: Tensor) -> Batch:
        """Images (B, 3, H, W) of ``rows`` as rewards take them."""
        records = rollout.records[rows]
        return images, [record["prompt"] for record in records], [record["metadata"] for record in records]

    def advantages(self, scores: Mapping[str, Tensor], groups: Tensor) -> Tensor:
        """Advantages (N,) of the rewards that the policy gradient sees, from each one's scores (N,)."""
        p = self.p
        seen = [spec for spec in p.rewards if spec.policy is not False]
        return group_advantages(
            torch.stack([scores[spec.name] for spec in seen]).float(),
            groups,
            torch.tensor([spec.weight for spec in seen]),
            baseline=p.baseline,
            std=p.advantage_std,
            eps=ADVANTAGE_EPS,
        ).clamp(-p.advantage_clip, p.advantage_clip)

    # Step 3: the terms of the deterministic last step.

    def last_step(
        self,
        rollout: Rollout,
        draws: Draws,
        terms: Terms,
        total: int | None = None,
        weigh: Weigh | None = None,
    ) -> dict[str, float]:
        """Values, and in ``terms`` the gradients, of distribution matching and of reward back-propagation through the
        last step, as ``matching_path`` says: at s = 0 through the last step or through the whole chain, or with its
        reward for the stochastic steps; or, as in stage one, through one step k ~ U{1..K} of the rollout, at its lower
        level s. Back-propagated is the reward of the image or, as ``backprop_at`` says, of a random step's x̂_0.

        The generator has not moved since the rollout, which therefore has the points at which both terms are: their
        gradients there come first, and decoder, rewards and scores are gone before the generator's step is run again.
        ``total``: images of all processes, whose gradients and values add up; None where these are all. ``weigh``: a
        weight of each image's matching."""
        p = self.p
        values = dict.fromkeys(("matching", "backprop", "gap", "image_grad/matching", "image_grad/backprop"), 0.0)
        if (p.weights.matching == 0 and p.weights.backprop == 0) or len(rollout) == 0:
            return values
        early = DmdrAnnealing(p.annealing, draws.step) if draws.step < p.annealing.epochs else None
        if early is not None:
            draws = early.draws(draws)
        last = len(rollout.sigmas) - 2
        through = seen = last  # the step through which matching goes, and the one whose x̂_0 the rewards see
        if p.matching_path == "random_step":
            through = integers(0, last + 1, draws.seed, draws.stream, draws.step, "matching-stop")
        if p.backprop_at == "random_step":
            seen = integers(0, last + 1, draws.seed, draws.stream, draws.step, "backprop-step")
        s = rollout.sigmas[through + 1].to(CPU).expand(len(rollout))
        points = renoised(rollout.states[through + 1], s, replace(draws, device=CPU), p.renoise_time)
        guidance = scaled_guidance(teacher_guidance(self.params, p, draws), p.matching_guidance)
        guided: dict[str, Any] = {"guidance": guidance, "null": self.null}
        directions = list[Tensor]()
        rewarded = self.reward_grad_outputs(rollout, seen, total or len(rollout), draws)
        for rows in micro_batches(len(rollout), p.micro_batch):
            cond = rollout.cond.index(rows)
            share = len(cond) / (total or len(rollout))
            grad_outputs: dict[str, Tensor] = {}  # each term's gradient at the image where it is taken
            if p.weights.backprop > 0:
                grad_outputs["backprop"], value = next(rewarded)
                values["backprop"] += value
            if p.weights.matching > 0:
                here = points.part(rows, rollout.device)
                with torch.no_grad():
                    v_fake = self.adapters.velocity("fake", here.x_t, here.t, cond)
                    if early is None:
                        v_teacher = self.adapters.velocity("teacher", here.x_t, here.t, cond, **guided)
                    else:
                        v_teacher = early.teacher(self.adapters, here, cond, guided)
                own_draws = replace(draws, samples=draws.samples[rows])
                direction = matching_direction(here, v_fake, v_teacher, self.eta, own_draws, p.normalise_matching)
                sample = here.x_s.detach().requires_grad_()
                losses = dmd_loss(sample, direction)
                if weigh is not None:
                    losses = losses * weigh(rows, sample.detach(), direction)
                loss = losses.mean() * share
                (grad_outputs["matching"],) = torch.autograd.grad(loss, sample)
                if p.matching_path == "reward":
                    directions.append(direction.to(CPU))
                values["matching"] += loss.item()
                values["gap"] += (v_fake - v_teacher).square().mean().item() * share
            for term, grad_output in grad_outputs.items():  # a mean over the images, each of its own loss
                values[f"image_grad/{term}"] += grad_output.flatten(1).norm(dim=1).sum().item()
            self.backpropagate(rollout, rows, grad_outputs, {"matching": through, "backprop": seen}, terms)
        if p.matching_path == "reward":
            rewards = matching_rewards(rollout.states[-1], torch.cat(directions), rollout.groups)
            terms.matching_rewards = rewards.to(rollout.device)
        return values

    def backpropagate(
        self, rollout: Rollout, rows: slice, grad_outputs: dict[str, Tensor], at: Mapping[str, int], terms: Terms
    ) -> None:
        """Take ``grad_outputs``, the gradients of matching at x_{k+1} and of the rewards at x̂_0, back through the
        generator's step k, which ``at`` says for each. Where it is the same step it is run once."""
        if self.p.matching_path == "whole_chain" and "matching" in grad_outputs:
            terms.add({"matching": self.repeat_chain(rollout, rows)}, {"matching": grad_outputs.pop("matching")})
        for k in sorted({at[term] for term in grad_outputs}):
            x_next, x0 = self.repeat_step(rollout, rows, k, rollout.state(k, rows))
            ends = {"matching": x_next, "backprop": x0}
            terms.add({term: ends[term] for term in grad_outputs if at[term] == k}, grad_outputs)

    def repeat_step(self, rollout: Rollout, rows: slice, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_{k+1} and x̂_0 (B, C, H, W) from x at step k of ``rows``, with gradient, the rollout's noise fixed."""
        sigma, tau = (rollout.sigmas[i].expand(len(x)) for i in (k, k + 1))
        v = self.adapters.velocity("generator", x, sigma, rollout.cond.index(rows))
        if k == len(rollout.sigmas) - 2:
            x_next = x0_from_velocity(x, v, sigma)
        else:
            mean, _ = cps_mean_std(x, v, sigma, tau, self.eta)
            x_next = mean + (rollout.state(k + 1, rows) - rollout.mean(k, rows))
        return x_next, x0_from_velocity(x, v, sigma)

    def repeat_chain(self, rollout: Rollout, rows: slice) -> Tensor:
        """x̂_0 (B, C, H, W) of ``rows`` with the gradient of all K steps, the rollout's noises fixed.

        Each step's activations are dropped and computed again during the backward pass, so the memory is that of one
        step and K latents; the time is that of 2 K forward and K backward passes.
        """
        x = rollout.state(0, rows)
        for k in range(len(rollout.sigmas) - 1):
            # No step draws a number, so there is no state of a generator to keep.
            x, _ = checkpoint(self.repeat_step, rollout, rows, k, x, use_reentrant=False, preserve_rng_state=False)
        return x

    def reward_grad_outputs(
        self, rollout: Rollout, seen: int, total: int, draws: Draws
    ) -> Iterator[tuple[Tensor, float]]:
        """Of each micro-batch the gradient at x̂_0 (B, C, H, W) of its part of the rewards' loss, and that part: over
        ``total`` images the mean of relu(m - Σ w r) of the differentiable rewards of the decoded x̂_0 that the
        generator predicted at step ``seen``.

        Where one of them is offloaded each comes to the device once, for many images that wait on the host; they are
        decoded again for the gradient, which gives the same bits.
        """
        p = self.p
        weights = {spec.name: spec.weight for spec in p.rewards if spec.differentiable}
        in_turn = not self.rewards.offloaded.isdisjoint(weights)
        at_once = 1  # micro-batches
        if in_turn:
            height, width = self.params.model.size
            each = 2 * p.micro_batch * 3 * 4 * height * width  # bytes of images and their gradients
            at_once = max(1, MAX_WAITING // each)
        parts = list(micro_batches(len(rollout), p.micro_batch))
        for some in micro_batches(len(parts), at_once):
            batches = list[Batch]()
            for rows in parts[some]:
                with torch.set_grad_enabled(not in_turn):
                    x0, images = self.decoded(rollout, rows, seen)
                batches.append(self.batch(rollout, rows, images.detach().to(CPU) if in_turn else images.detach()))
            if p.relative.liked:
                gradients = relative_gradients(self.rewards, batches, weights, p.relative, draws)
            else:
                gradients = self.rewards.gradients(batches, weights)
            for rows, (rewards, slope) in zip(parts[some], gradients, strict=True):
                if in_turn:
                    x0, images = self.decoded(rollout, rows, seen)
                left = p.backprop_margin - rewards.to(images.device)
                slope = slope.to(images.device) * (-(left > 0).to(slope.dtype) / total)[:, None, None, None]
                (grad_output,) = torch.autograd.grad(images, x0, slope)
                yield grad_output, torch.relu(left).sum().item() / total

    def decoded(self, rollout: Rollout, rows: slice, k: int) -> tuple[Tensor, Tensor]:
        """x̂_0 (B, C, H, W) that the generator predicted at step k of ``rows``, and its image (B, 3, H, W)."""
        x0 = rollout.predicted_x0(rows, k, self.eta).detach().requires_grad_()
        return x0, self.backbone.decode(x0)

    # Step 4: the policy gradient.

    def policy_gradient(
        self,
        rollout: Rollout,
        advantages: Tensor,
        trained: Sequence[int],
        terms: Terms,
        all_ranks: Tensor | None = None,
    ) -> dict[str, float]:
        """Values, and in ``terms`` the gradients, of the clipped policy loss and of the reference KL over the trained
        steps.

        Images of zero advantage are left out of the policy term only, and of the passes where it is the only term; a
        group whose images are still equal at a step has one pass. ``all_ranks``: the advantages of all processes'
        images, whose gradients add up; None where these are all. Where ``terms`` hold matching as a reward its policy
        gradient is added to its term, unbiased for all candidate steps. Values: clip fraction, the largest |ratio - 1|,
        which is 0 at the first update of an epoch, and by level the norm of the policy gradient, where no other term is
        in its sum.
        """
        p = self.p
        policy = terms.sums.get("policy")  # none where another term shares it
        image_rewards = terms.matching_rewards
        all_ranks = advantages if all_ranks is None else all_ranks
        included = advantages.cpu() != 0
        all_included = all_ranks.cpu() != 0
        if not p.drop_zero_advantage:
            included = torch.ones_like(included)
            all_included = torch.ones_like(all_included)
        total = len(all_ranks)
        divisor = max(1, int(all_included.sum()))
        with_anchor = p.weights.reference_kl > 0
        needed = torch.ones_like(included) if with_anchor or image_rewards is not None else included
        # A mean over the trained steps, or their sum, which `step` divides by M + 1 as the public code does; the
        # paper's (K-1)/M makes their sum unbiased for all stochastic steps.
        share = 1.0 if p.loss_average == "all_steps" else 1 / len(trained)
        factor = subset_factor(len(p.candidate_steps) + 1, len(trained)) if p.subset_factor else share
        values = {
            "frac_nonzero_advantage": all_included.float().mean().item(),
            "clip_fraction": 0.0,
            "ratio_error": 0.0,
        }
        passes = 0
        for k in trained if p.weights.policy > 0 or with_anchor or image_rewards is not None else ():
            before = policy.total if policy is not None else None
            equal = rollout.groups if rollout.equal[k] else None
            for shared in shared_passes(equal, needed, p.micro_batch):
                rows = shared.rows
                x_next = rollout.state(k + 1, rows)
                mean, std = self.transition("generator", rollout, k, shared)
                new = self.log_prob(x_next, mean, std)
                old = self.log_prob(x_next, rollout.mean(k, rows), std)
                loss, ratio, clipped = clipped_policy_loss(new, old, advantages[rows], p.clip_range)
                parts: dict[str, Tensor] = {}
                if p.weights.policy > 0:
                    parts["policy"] = factor * (loss * included[rows].to(loss)).sum() / divisor
                if image_rewards is not None:
                    grad_output, *_ = clipped_policy_loss(new, old, image_rewards[rows], p.clip_range)
                    whole = subset_factor(len(p.candidate_steps) + 1, len(trained))
                    parts["matching"] = whole * grad_output.sum() / total
                if with_anchor:
                    with torch.no_grad():
                        mean_ref, _ = self.transition("reference", rollout, k, shared)
                    parts["reference_kl"] = self.reference_distance(mean, mean_ref, std, k).sum() / total * share
                terms.add(parts)
                values["clip_fraction"] += clipped.item()
                values["ratio_error"] = max(values["ratio_error"], (ratio - 1).abs().max().item())
                passes += 1
            if policy is not None:
                values[f"grad_policy/sigma={rollout.sigmas[k].item():.3g}"] = policy.norm(before)
        values["clip_fraction"] /= max(1, passes)
        return values

    def reference_distance(self, mean: Tensor, reference: Tensor, std: Tensor, k: int) -> Tensor:
        """How far a transition (B, C, H, W) at step k is from the reference's, (B,), as ``reference_measure`` says."""
        if self.p.reference_measure == "transitions":
            return gaussian_kl(mean, reference, std)
        slope = velocity_slope(self.sigmas[k], self.sigmas[k + 1], self.eta)
        return ((mean - reference) / slope).square().flatten(1).mean(1)

    def transition(self, role: str, rollout: Rollout, k: int, shared: SharedPass) -> tuple[Tensor, Tensor]:
        """Mean (B, C, H, W) and standard deviation (B,) of a role's transition at step k, for the rows of
        ``shared``."""
        level = rollout.sigmas[k].expand(len(shared.run))
        v = self.adapters.velocity(role, rollout.state(k, shared.run), level, rollout.cond.index(shared.run))
        sigma, tau = (rollout.sigmas[i].expand(len(shared.rows)) for i in (k, k + 1))
        return cps_mean_std(rollout.state(k, shared.rows), v[shared.of], sigma, tau, self.eta)

    def log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Log-density (B,) of a transition to x (B, C, H, W), as ``density`` has it."""
        return gaussian_log_prob(x, mean, std) if self.p.density == "gaussian" else published_log_prob(x, mean)

    # Step 6: the fake score.

    def fake_updates(self, rollout: Rollout, draws: Draws) -> dict[str, float]:
        """All updates of an epoch; the values are those of the last one."""
        values: dict[str, float] = {}
        for update in range(self.p.fake_updates_per_epoch):
            values |= self.fake_update(rollout, draws, update)
        return values

    def fake_update(self, rollout: Rollout, draws: Draws, update: int) -> dict[str, float]:
        """Update number ``update`` of an epoch: ambient flow matching on ``fake_batch_size`` images of all processes,
        taken as they end or, as ``fake_samples`` says, at a random level of their chains."""
        p = self.p
        count = p.prompts_per_epoch * p.group_size
        order = permutation(count, draws.seed, draws.stream, draws.step, "fake-rows", update)
        chosen = order[: p.fake_batch_size]
        k = len(self.sigmas) - 1
        if p.fake_samples == "chain":
            k = integers(1, k + 1, draws.seed, draws.stream, draws.step, "fake-level", update)
        rows, own = draws.subset(chosen, f"{draws.stream}-fake-{update}")
        values = {"fake_ambient": 0.0}
        if p.consistency.weight > 0:
            values["fake_consistency"] = 0.0
        gradients = Gradients(self.fake, term=" + ".join(values))
        with self.ranks.sync_errors():
            for part in micro_batches(len(rows), p.micro_batch):
                images = rows[part]
                cond = rollout.cond.index(images)
                part_draws = replace(own, samples=own.samples[part])
                share = len(images) / len(chosen)
                s = self.sigmas[k].expand(len(images))
                point = renoised(rollout.state(k, images), s, part_draws, p.renoise_time)
                v_fake = self.adapters.velocity("fake", point.x_t, point.t, cond)
                loss, terms = self.fake_loss(point, v_fake, cond, part_draws)
                for name, value in terms.items():
                    values[name] += share * value
                gradients.add(share * loss)
        gradients.all_reduce(self.ranks)
        summed = self.ranks.all_reduce(values)
        return summed | {"fake_grad_norm": self.fake.step(gradients.total, gradients.term)}

    def write_outputs(self, stage: Stage, chosen: dict[str, str]) -> None:
        """The EMA generator, with what is needed to read it (``chosen``: as which it was), and what the scorers
        were."""
        self.ema.swap()
        report_lost_update(self.params, NAME, self.adapters)
        about = student_header(NAME, self.params) | chosen
        save_tensors(self.adapters.state("rtdmd"), stage.output("generator.safetensors"), about)
        write_json(stage.output("scorers.json"), identities(self.rewards.rewards.values()))


def open_adapters(params: Params, backbone: Backbone) -> AdapterBank:
    """The stage's adapters, none of them loaded or merged yet."""
    p = params.train_rtdmd
    stacks = stage_two_stacks(params)
    return AdapterBank(backbone, params.adapter, stacks, params.run.seed, p.compile, p.adapter_init)
