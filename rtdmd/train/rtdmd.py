"""Stage two: reward-tilted distribution matching (Algorithm 1, second half): `RtdmdTrainer.step`, and its steps below.

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

from rtdmd.backbones.protocol import Backbone, Conditioning
from rtdmd.common.files import save_tensors, write_json
from rtdmd.config import Params
from rtdmd.flow.cps import cps_mean_std, gaussian_log_prob, published_log_prob, velocity_slope
from rtdmd.flow.matching import dmd_loss, matching_rewards
from rtdmd.flow.path import require_finite
from rtdmd.flow.policy import clipped_policy_loss, draw_step_subset, gaussian_kl, group_advantages, subset_factor
from rtdmd.pipeline.stage import Stage
from rtdmd.rewards.protocol import identities
from rtdmd.rewards.reward_models import MAX_WAITING, Batch, RewardModels
from rtdmd.train import baseline_losses
from rtdmd.train.adapters import AdapterBank, merge_stage_one, stage_two_stacks
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.engine.diagnostics import SaturationCounter, latent_values, require_on_policy, signal_values
from rtdmd.train.learner import EMA, Gradients, Learner, Terms, combine, ema_warmup_decay, shared_terms
from rtdmd.train.losses import (
    Draws,
    FakeScoreLoss,
    matching_direction,
    micro_batches,
    renoised,
    require_renoise_time,
    scaled_guidance,
    teacher_guidance,
)
from rtdmd.train.rollout import CPU, ImageConditioning, Rollout, pinned_cat, shared_passes, to_device
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
        if adapters is None:
            adapters = open_adapters(params, backbone)
            merge_stage_one(adapters, params)
        self.params = params
        self.p = p
        self.eta = params.model.eta
        self.backbone = backbone
        self.rewards = rewards
        self.null = null
        self.ranks = ranks or Ranks()
        self.adapters = adapters
        self.sigmas = backbone.sigmas(params.model.num_steps).to(backbone.device)  # (K+1,)
        # Levels that s can have; where both terms start from images, 0 alone.
        only_images = p.fake_samples == "data" and p.matching_path == "last_step"
        require_renoise_time(NAME, p.renoise_time, self.sigmas[-1:] if only_images else self.sigmas[1:])
        self.fake_loss = FakeScoreLoss(adapters, p, self.eta)
        weights = adapters.trainable("rtdmd")
        self.ema = EMA(weights, p.ema_decay)
        lr_decay = (p.lr_decay_fraction, p.epochs)
        self.generator = Learner.adamw(weights, p.generator_optimizer, lr_decay=lr_decay, ema=self.ema)
        self.generator.named("generator", adapters.parameter_names("rtdmd"))
        own_fake = adapters.stacks["fake"][-1]
        self.fake = Learner.adamw(adapters.trainable(own_fake), p.fake_optimizer)
        self.fake.named("fake score", adapters.parameter_names(own_fake))
        self.surrogate = SurrogateReward(adapters, p) if p.weights.surrogate > 0 else None

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
        last_images = list(range(count))  # of the last step's terms; all where matching is a reward of every image
        if p.last_step_batch_size < count and p.matching_path != "reward":
            last_images = draws.permutation(count, "last-rows")[: p.last_step_batch_size]
        last_rows, last_draws = draws.subset(last_images)
        pixels = SaturationCounter()
        terms = Terms(self.generator, dict(p.weights), shared_terms(p))

        with ranks.sync_errors():
            # 1. SubGRPO draws the stochastic steps to train. Roll out: elsewhere a group shares its noise.
            order = draws.permutation(len(p.candidate_steps), "subset")
            trained = [p.candidate_steps[i] for i in draw_step_subset(order, p.trained_steps)]
            rollout = self.roll_out(cond, records, groups[local], trained, draws)
        fake_values = self.fake_updates(rollout, draws) if p.update_order == "fake_first" else {}

        # 2. Rewards of the final images; a slow scorer goes on beside 3.
        with ranks.sync_errors(), self.rewards.scoring(self.images(rollout, pixels)) as scoring:
            # 3. Last step: distribution matching, and back-propagation of the differentiable rewards.
            chosen = rollout.take(last_rows)
            if p.matching_gain == 0:
                renoise = p.last_step_from == "renoised"  # DMDR's code
                chain = baseline_losses.from_renoised(self, chosen, last_draws) if renoise else chosen
                sums = self.last_step(chain, last_draws, terms, len(last_images))
            own_scores = scoring.scores(rollout.sigmas.device)

        # 4. Advantages over the images of all processes, and the policy gradient of the trained steps.
        scores = {name: ranks.all_gather(own) for name, own in own_scores.items()}
        advantages = self.advantages(scores, groups)
        stepwise = p.credit != "trajectory"
        credited = baseline_losses.step_advantages(self, rollout, scores, trained) if stepwise else {}
        # TDM-R1: the reward learns from the advantages, then the generator from it.
        learned = {} if self.surrogate is None else self.surrogate.update(self, rollout, advantages[local], draws)
        with ranks.sync_errors():
            if p.matching_gain > 0:  # GDMD: the rewards weigh the matching
                weigh = baseline_losses.gain_weights(self, chosen, scores, last_draws.samples)
                sums = self.last_step(chosen, last_draws, terms, len(last_images), weigh)
            if stepwise:
                means = baseline_losses.stepwise_policy_gradient(self, rollout, credited, local, terms)
            else:
                means = self.policy_gradient(rollout, advantages[local], trained, terms, advantages)
            if p.weights.nft > 0 or p.weights.awm > 0:
                sums |= baseline_losses.renoised_gradients(self, rollout, advantages[local], draws, terms)
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

    # Step 1: the rollout; step 2: its images, for the rewards.

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
            parts = list[tuple[Tensor, Tensor, Tensor]]()
            for owners in micro_batches(len(x) // copies, p.micro_batch):
                rows = slice(owners.start * copies, owners.stop * copies)
                here = to_device(x[rows], device)
                one = here[::copies]
                one_cond = texts.index(slice(rows.start, rows.stop, copies))
                v = self.adapters.velocity("generator", one, sigma.expand(len(one)), one_cond)
                v = require_finite(f"the generator's velocity at step {k}", v).repeat_interleave(copies, 0)
                mean, std = cps_mean_std(here, v, sigma.expand(len(here)), tau.expand(len(here)), self.eta)
                after = mean if noise is None else mean + std[:, None, None, None] * to_device(noise[rows], device)
                parts.append((after.to(CPU), mean.to(CPU), std.to(CPU)))
            after_parts, mean_parts, std_parts = zip(*parts, strict=True)
            x = pinned_cat(after_parts, device)
            states.append(x)
            if k < last:
                means.append(pinned_cat(mean_parts, device))
                stds.append(pinned_cat(std_parts, device))
                equal.append(equal[k] and share)
        return Rollout(states, means, stds, self.sigmas, texts, records, groups, tuple(equal), self.eta)

    @torch.no_grad()
    def images(self, rollout: Rollout, pixels: SaturationCounter | None = None) -> Iterator[Batch]:
        """The rollout's final images as rewards take them: micro-batches (B, 3, H, W) with prompts and metadata,
        counted in ``pixels``."""
        for rows in micro_batches(len(rollout), self.p.micro_batch):
            images = require_finite("the decoder's images", self.backbone.decode(rollout.state(-1, rows)))
            if pixels is not None:
                pixels.saturated += ((images <= 0) | (images >= 1)).sum().item()
                pixels.total += images.numel()
            yield rollout.batch(rows, images)

    # Step 3: the terms of the deterministic last step.

    def last_step(
        self,
        rollout: Rollout,
        draws: Draws,
        terms: Terms,
        total: int | None = None,
        weigh: baseline_losses.Weigh | None = None,
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
        total = total or len(rollout)
        early = None  # DMDR
        if draws.step < p.annealing.epochs:
            early = baseline_losses.DmdrAnnealing(p.annealing, draws.step)
            draws = early.draws(draws)
        steps = len(rollout.sigmas) - 1
        # The step through which matching goes, and the one whose x̂_0 the rewards see.
        through = draws.integer(steps, "matching-stop") if p.matching_path == "random_step" else steps - 1
        seen = draws.integer(steps, "backprop-step") if p.backprop_at == "random_step" else steps - 1
        s = rollout.sigmas[through + 1].to(CPU).expand(len(rollout))
        points = renoised(rollout.states[through + 1], s, replace(draws, device=CPU), p.renoise_time)
        guidance = scaled_guidance(teacher_guidance(self.params, p, draws), p.matching_guidance)
        guided: dict[str, Any] = {"guidance": guidance, "null": self.null}
        directions = list[Tensor]()
        rewarded = self.reward_grad_outputs(rollout, seen, total, draws)
        for rows in micro_batches(len(rollout), p.micro_batch):
            cond = rollout.cond.index(rows)
            share = len(cond) / total
            grad_outputs: dict[str, Tensor] = {}  # each term's gradient at the image where it is taken
            if p.weights.backprop > 0:
                grad_outputs["backprop"], value = next(rewarded)
                values["backprop"] += value
            if p.weights.matching > 0:
                here = points.part(rows, rollout.sigmas.device)
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
            # Back through the generator's steps; where both terms are at the same one it is run once.
            if p.matching_path == "whole_chain" and "matching" in grad_outputs:
                x0 = rollout.repeat_chain(self.adapters, rows)
                terms.add({"matching": x0}, {"matching": grad_outputs.pop("matching")})
            at = {term: through if term == "matching" else seen for term in grad_outputs}
            for k in sorted(set(at.values())):
                x_next, x0 = rollout.repeat_step(self.adapters, rows, k, rollout.state(k, rows))
                ends = {"matching": x_next, "backprop": x0}
                terms.add({term: ends[term] for term in at if at[term] == k}, grad_outputs)
        if p.matching_path == "reward":
            rewards = matching_rewards(rollout.states[-1], torch.cat(directions), rollout.groups)
            terms.matching_rewards = rewards.to(rollout.sigmas.device)
        return values

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
                    x0 = rollout.predicted_x0(rows, seen).detach().requires_grad_()
                    images = self.backbone.decode(x0)
                batches.append(rollout.batch(rows, images.detach().to(CPU) if in_turn else images.detach()))
            if p.relative.liked:
                gradients = baseline_losses.relative_gradients(self.rewards, batches, weights, p.relative, draws)
            else:
                gradients = self.rewards.gradients(batches, weights)
            for rows, (rewards, slope) in zip(parts[some], gradients, strict=True):
                if in_turn:
                    x0 = rollout.predicted_x0(rows, seen).detach().requires_grad_()
                    images = self.backbone.decode(x0)
                left = p.backprop_margin - rewards.to(images.device)
                slope = slope.to(images.device) * (-(left > 0).to(slope.dtype) / total)[:, None, None, None]
                (grad_output,) = torch.autograd.grad(images, x0, slope)
                yield grad_output, torch.relu(left).sum().item() / total

    # Step 4: the advantages and the policy gradient.

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
        with_anchor = p.weights.reference_kl > 0
        every = (advantages, advantages if all_ranks is None else all_ranks)
        included, all_included = ((part.cpu() != 0) | (not p.drop_zero_advantage) for part in every)
        divisor = max(1, int(all_included.sum()))
        needed = torch.ones_like(included) if with_anchor or image_rewards is not None else included
        # A mean over the trained steps, or their sum, which `step` divides by M + 1 as the public code does; the
        # paper's (K-1)/M makes their sum unbiased for all stochastic steps.
        share = 1.0 if p.loss_average == "all_steps" else 1 / len(trained)
        unbiased = subset_factor(len(p.candidate_steps) + 1, len(trained))
        factor = unbiased if p.subset_factor else share
        values = {
            "frac_nonzero_advantage": all_included.float().mean().item(),
            "clip_fraction": 0.0,
            "ratio_error": 0.0,
        }
        passes = 0
        for k in trained if p.weights.policy > 0 or with_anchor or image_rewards is not None else ():
            before = policy.total if policy is not None else None
            for shared in shared_passes(rollout.groups if rollout.equal[k] else None, needed, p.micro_batch):
                rows = shared.rows
                x_next = rollout.state(k + 1, rows)
                mean, std = rollout.transition(self.adapters, "generator", k, shared)
                new = self.log_prob(x_next, mean, std)
                old = self.log_prob(x_next, rollout.mean(k, rows), std)
                loss, ratio, clipped = clipped_policy_loss(new, old, advantages[rows], p.clip_range)
                parts: dict[str, Tensor] = {}
                if p.weights.policy > 0:
                    parts["policy"] = factor * (loss * included[rows].to(loss)).sum() / divisor
                if image_rewards is not None:
                    matching, *_ = clipped_policy_loss(new, old, image_rewards[rows], p.clip_range)
                    parts["matching"] = unbiased * matching.sum() / len(all_included)
                if with_anchor:
                    with torch.no_grad():
                        mean_ref, _ = rollout.transition(self.adapters, "reference", k, shared)
                    distance = self.reference_distance(mean, mean_ref, std, k)
                    parts["reference_kl"] = distance.sum() / len(all_included) * share
                terms.add(parts)
                values["clip_fraction"] += clipped.item()
                values["ratio_error"] = max(values["ratio_error"], (ratio - 1).abs().max().item())
                passes += 1
            if policy is not None:
                values[f"grad_policy/sigma={rollout.sigmas[k].item():.3g}"] = policy.norm(before)
        values["clip_fraction"] /= max(1, passes)
        return values

    def log_prob(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Log-density (B,) of a transition to x (B, C, H, W), as ``density`` has it."""
        return gaussian_log_prob(x, mean, std) if self.p.density == "gaussian" else published_log_prob(x, mean)

    def reference_distance(self, mean: Tensor, reference: Tensor, std: Tensor, k: int) -> Tensor:
        """How far a transition (B, C, H, W) at step k is from the reference's, (B,), as ``reference_measure`` says."""
        if self.p.reference_measure == "transitions":
            return gaussian_kl(mean, reference, std)
        slope = velocity_slope(self.sigmas[k], self.sigmas[k + 1], self.eta)
        return ((mean - reference) / slope).square().flatten(1).mean(1)

    # Step 5: the EMA of the generator.

    def update_ema(self) -> None:
        """The generator's average, after n updates of the generator, on its turn (``ema_every``, ``ema_warmup``)."""
        p = self.p
        n = self.generator.updates
        if (n + p.ema_warmup) % p.ema_every == 0:
            decay = ema_warmup_decay(n, p.ema_decay) if p.ema_warmup else p.ema_decay
            self.ema.update(decay**p.ema_repeats)

    # Step 6: the fake score.

    def fake_updates(self, rollout: Rollout, draws: Draws) -> dict[str, float]:
        """All updates of an epoch, each by ambient flow matching on ``fake_batch_size`` images of all processes, taken
        as they end or, as ``fake_samples`` says, at a random level of their chains; the values are the last one's."""
        p = self.p
        names = ("fake_ambient", "fake_consistency") if p.consistency.weight > 0 else ("fake_ambient",)
        found: dict[str, float] = {}
        for update in range(p.fake_updates_per_epoch):
            order = draws.permutation(p.prompts_per_epoch * p.group_size, "fake-rows", update)
            chosen = order[: p.fake_batch_size]
            k = len(self.sigmas) - 1
            if p.fake_samples == "chain":
                k = 1 + draws.integer(k, "fake-level", update)
            rows, own = draws.subset(chosen, f"{draws.stream}-fake-{update}")
            values = dict.fromkeys(names, 0.0)
            gradients = Gradients(self.fake, term=" + ".join(names))
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
            found = self.ranks.all_reduce(values)
            found["fake_grad_norm"] = self.fake.step(gradients.total, gradients.term)
        return found

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
