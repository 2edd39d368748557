"""The compared methods' terms on the tiny backbone: each against what it must be by its definition."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.config.compared import AnnealingParams, RelativeParams
from rtdmd.flow.awm import awm_loss
from rtdmd.flow.nft import nft_loss, optimality, published_nft_loss
from rtdmd.flow.path import interpolate, x0_from_velocity
from rtdmd.rewards.reward_models import RewardModels
from rtdmd.train.baseline_losses import (
    DmdrAnnealing,
    from_renoised,
    gain_weights,
    relative_gradients,
    renoised_gradients,
    step_advantages,
    stepwise_policy_gradient,
)
from rtdmd.train.learner import Terms
from rtdmd.train.losses import Renoised, scaled_guidance
from tests.train.test_rtdmd import (
    COUNT,
    LEVELS,
    Table,
    draws,
    flat,
    last_step,
    policy_gradient,
    relative,
    settings,
    some_advantages,
    table,  # noqa: F401  (the fixture)
)
from tests.train.workshop import roles_on

VERIFIER: dict[str, Any] = {
    "rewards": [{"name": "world_verifier", "weight": 2.0, "soft_weight": 0.5}],
    "weights": {"backprop": 0.0},
}


class Brightness:
    """A reward that is the mean of the image."""

    name = "world_verifier"

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Any) -> Tensor:
        return images.flatten(1).mean(1)


BRIGHT = {"world_verifier": Brightness()}


def brightness(on: Table, latents: Tensor) -> Tensor:
    return on.backbone.decode(latents).flatten(1).mean(1)


@pytest.fixture
def short(table: Table) -> Table:  # noqa: F811
    return table


def test_nft_is_the_loss_on_the_images_renoised_to_the_samplers_levels(short: Table) -> None:
    p = settings(nft_strength=0.7, weights={"nft": 1.0})
    rollout, advantages = short.roll_out(p, (0, 2)), some_advantages()
    terms = Terms(short.learner, dict(p.weights))
    value = renoised_gradients(short.on(p), rollout, advantages, draws(), terms)["nft"]
    sigma = LEVELS[:-1][(draws().uniform("nft-level") * 4).long()]
    assert set(sigma.tolist()) <= set(LEVELS[:-1].tolist()) and len(set(sigma.tolist())) > 1
    noise, x0 = draws().normal("nft"), rollout.states[-1]
    v = short.bank.velocity("generator", interpolate(x0, noise, sigma), sigma, short.cond)
    loss = nft_loss(v, v.detach(), noise - x0, optimality(advantages), 0.7).mean()
    own = torch.cat([g.flatten() for g in torch.autograd.grad(loss, short.learner.parameters)])
    assert relative(flat(terms.sums["nft"]), own) < 1e-5
    assert value == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("term", ["nft", "awm"])
def test_published_forms_are_their_losses_on_the_same_points(short: Table, term: str) -> None:
    """DiffusionNFT as its code has it, and AWM with advantages over their clip."""
    weights = {"nft": 1.0, "awm": 1.0}
    p = settings(nft_strength=0.7, nft_form="published", awm_power=0.5, advantage_clip=4.0, weights=weights)
    rollout, advantages = short.roll_out(p, (0, 2)), some_advantages()
    terms = Terms(short.learner, dict(p.weights))
    value = renoised_gradients(short.on(p), rollout, advantages, draws(), terms)[term]
    sigma = LEVELS[:-1][(draws().uniform("nft-level") * 4).long()]
    noise, x0 = draws().normal("nft"), rollout.states[-1]
    v = short.bank.velocity("generator", interpolate(x0, noise, sigma), sigma, short.cond)
    if term == "nft":
        r = optimality(advantages / 4)
        loss = 4 * published_nft_loss(v, v.detach(), noise - x0, sigma, r, 0.7).mean()
    else:
        loss = awm_loss(v, noise - x0, sigma, advantages / 4, 0.5).mean()
    own = torch.cat([g.flatten() for g in torch.autograd.grad(loss, short.learner.parameters)])
    assert relative(flat(terms.sums[term]), own) < 1e-5
    assert value == pytest.approx(loss.item(), rel=1e-5)


def test_from_renoised_images_both_terms_go_through_one_step(short: Table) -> None:
    """The image at a level of the sampler again, x̂_0 from there in one step, and the reward's gradient through it."""
    p = settings(last_step_from="renoised", backprop_at="last_step", weights={"matching": 1.0, "backprop": 1.0})
    rollout, levels = short.roll_out(p, (0, 2)), set()
    for step in (0, 1, 2):
        own = draws(step=step)
        chain = from_renoised(short.on(p), rollout, own)
        level = chain.sigmas[0].item()
        levels.add(level)
        sigma = torch.full((COUNT,), level)
        x = interpolate(rollout.states[-1], own.normal("renoised"), sigma)
        torch.testing.assert_close(chain.states[0], x)
        x0 = x0_from_velocity(x, short.bank.velocity("generator", x, sigma, short.cond), sigma)
        torch.testing.assert_close(chain.states[-1], x0.detach(), rtol=1e-4, atol=1e-5)
    assert levels <= set(LEVELS[:-1].tolist()) and len(levels) > 1
    terms = Terms(short.learner, dict(p.weights))
    values = short.on(p, {"clipscore": Brightness()}).last_step(chain, own, terms)
    score = brightness(short, x0).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(-score, short.learner.parameters)])
    assert relative(flat(terms.sums["backprop"]), expected) < 1e-4
    assert values["matching"] > 0 and flat(terms.sums["matching"]).norm() > 0


class Worded:
    """A reward that is the mean of the image, times the length of its prompt."""

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Any) -> Tensor:
        return images.flatten(1).mean(1) * torch.tensor([float(len(prompt)) for prompt in prompts])


def test_a_relative_reward_is_the_liked_prompts_over_the_disliked_ones() -> None:
    """SRPO: (1 + k) times the brightness by the letters of `good. ab`, minus that by those of `bad. ab`; by turns with
    the other words."""
    reward_models = RewardModels({"clipscore": Worded()}, torch.device("cpu"))  # type: ignore[dict-item]
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    batches = [(images, ["ab", "abcd"], [None, None])]
    light = images.flatten(1).mean(1)
    seen = set()
    for step in range(8):
        words = RelativeParams(strength=0.5, liked=("good", "splendid"), disliked=("bad",))
        ((rewards, slope),) = relative_gradients(reward_models, batches, {"clipscore": 2.0}, words, draws(step=step))
        for liked in (4, 8):
            length = torch.tensor([2.0, 4.0])
            gain = 2 * (1.5 * (liked + 2 + length) - (3 + 2 + length))
            if torch.allclose(rewards, gain * light):
                seen.add(liked)
                torch.testing.assert_close(slope, (gain / 48)[:, None, None, None].expand_as(slope))
    assert seen == {4, 8}


def test_matching_keeps_a_share_of_the_guidance(short: Table) -> None:
    """A third of what is beyond 1 at guidance 3 is matching at guidance 5/3."""
    p = settings(weights={"backprop": 0.0}, matching_guidance=1 / 3)
    rollout = short.roll_out(p, (0, 2))
    model = short.trainer.params.model.model_copy(update={"guidance": 5 / 3})
    whole = short.trainer.params.model_copy(update={"model": model, "train_rtdmd": settings(weights={"backprop": 0.0})})
    both = []
    for trainer in (short.on(p), short.trainer.variant(whole)):
        terms = Terms(short.learner, dict(p.weights))
        trainer.last_step(rollout, draws(), terms)
        both.append(flat(terms.sums["matching"]))
    assert relative(both[0], both[1]) < 1e-5
    assert all(scaled_guidance(weight, 1.0) == weight for weight in (1.0, 1.1, 3.3, 4.5, 7.7))


def test_nft_moves_the_velocity_to_good_images_and_from_bad_ones(short: Table) -> None:
    p = settings(weights={"nft": 1.0})
    rollout = short.roll_out(p, (0, 2))
    both = []
    for advantage in (1.0, -1.0):
        terms = Terms(short.learner, dict(p.weights))
        renoised_gradients(short.on(p), rollout, torch.full((COUNT,), advantage), draws(), terms)
        both.append(flat(terms.sums["nft"]))
    good, bad = both
    assert relative(good, -bad) < 1e-5 and good.norm() > 0


def test_gains_are_the_rewards_of_the_foreseen_images(short: Table) -> None:
    p = settings(credit="gain", trained_steps=3, share_noise=False, **VERIFIER)
    rollout = short.roll_out(p, (0, 1, 2))
    final = {"world_verifier": brightness(short, rollout.states[-1])}
    trainer = short.on(p, BRIGHT)
    found = step_advantages(trainer, rollout, final, (0, 1, 2))
    seen = []
    for k in range(4):
        v = short.bank.velocity("generator", rollout.states[k], LEVELS[k].expand(COUNT), short.cond)
        seen.append(brightness(short, x0_from_velocity(rollout.states[k], v, LEVELS[k].expand(COUNT)).detach()))
    torch.testing.assert_close(seen[3], final["world_verifier"])
    for k in range(3):
        expected = trainer.advantages({"world_verifier": seen[k + 1] - seen[k]}, rollout.groups)
        torch.testing.assert_close(found[k], expected, rtol=2e-3, atol=2e-3)  # float32 images, divided by their spread
    to_go = step_advantages(short.on(p.model_copy(update={"credit": "to_go"}), BRIGHT), rollout, final, (0, 2))
    expected = trainer.advantages({"world_verifier": seen[3] - seen[0]}, rollout.groups)
    torch.testing.assert_close(to_go[0], expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(to_go[2], found[2])  # the last stochastic step's gain is all that is to go


def test_one_advantage_for_every_step_is_the_plain_policy_gradient(short: Table) -> None:
    for factor in (False, True):
        p = settings(subset_factor=factor)
        rollout, advantages = short.roll_out(p, (0, 2)), some_advantages()
        plain, _, values = policy_gradient(short.on(p), rollout, advantages, (0, 2))
        terms = Terms(short.learner, dict(p.weights))
        more = stepwise_policy_gradient(short.on(p), rollout, {0: advantages, 2: advantages}, slice(None), terms)
        assert relative(flat(terms.sums["policy"]), flat(plain)) < 1e-5
        assert more == pytest.approx(values)


def test_matching_weighs_by_what_the_target_gains(short: Table) -> None:
    """Brightness of the decoded image before and after the step along -g, in units of the rollout's spread."""
    p = settings(matching_gain=0.5, **VERIFIER)
    rollout = short.roll_out(p, (0, 2))
    final = {"world_verifier": brightness(short, rollout.states[-1])}
    rows = [7, 2, 5]
    trainer = short.on(p, BRIGHT)
    weigh = gain_weights(trainer, rollout.take(rows), final, rows)
    images, direction = rollout.states[-1][rows][1:], 0.3 * draws().normal("g")[:2]
    spread = 2 * final["world_verifier"].std(correction=0)
    gained = 2 * (brightness(short, images - direction) - brightness(short, images)) / spread
    expected = 1 + 0.5 * gained.clamp(-1, 1)
    torch.testing.assert_close(weigh(slice(1, 3), images, direction), expected, rtol=1e-3, atol=1e-3)
    assert bool((expected != 1).all())
    flat_scores = {"world_verifier": torch.ones(COUNT)}
    silent = gain_weights(trainer, rollout.take(rows), flat_scores, rows)
    assert silent(slice(0, 3), rollout.states[-1][rows], direction[:1]).tolist() == [1, 1, 1]


def test_weights_of_matching_scale_its_gradient(short: Table) -> None:
    p = settings(matching_path="last_step", weights={"backprop": 0.0})
    rollout = short.roll_out(p, (0, 2))
    plain, *_ = last_step(short, rollout, p)
    double = Terms(short.learner, dict(p.weights))
    short.on(p).last_step(
        rollout, draws(), double, weigh=lambda rows, images, direction: torch.full((len(images),), 2.0)
    )
    assert relative(flat(double.sums["matching"]), 2 * flat(plain)) < 1e-6


def test_refl_back_propagates_the_estimate_of_a_random_step(short: Table) -> None:
    p = settings(backprop_at="random_step", weights={"matching": 0.0, "backprop": 1.0}, micro_batch=COUNT)
    rollout = short.roll_out(p, (0, 2))
    seen = set()
    for step in range(6):
        terms = Terms(short.learner, dict(p.weights))
        short.on(p, {"clipscore": Brightness()}).last_step(rollout, draws(step=step), terms)
        for k in range(4):
            x, sigma = rollout.states[k], LEVELS[k].expand(COUNT)
            v = short.bank.velocity("generator", x, sigma, short.cond)
            score = brightness(short, x0_from_velocity(x, v, sigma)).mean()
            own = torch.cat([g.flatten() for g in torch.autograd.grad(-score, short.learner.parameters)])
            if relative(flat(terms.sums["backprop"]), own) < 1e-4:
                seen.add(k)
                break
        else:
            pytest.fail("the gradient is that of no step's estimate")
    assert len(seen) > 1


def test_the_teacher_carries_the_fake_scores_adapter_at_the_annealed_scale(short: Table) -> None:
    """At scale 1 it is the fake score, at a small scale it moves linearly, and afterwards nothing is left."""
    bank, x, sigma = short.bank, draws().normal("x"), torch.full((COUNT,), 0.5)
    point = Renoised(x, sigma, x, sigma, x)

    def at(scale: float) -> Tensor:
        annealing = AnnealingParams(guidance=scale, renoise=False, epochs=10)
        return DmdrAnnealing(annealing, 0).teacher(bank, point, short.cond, {})

    with torch.no_grad():
        teacher, fake = (bank.velocity(role, x, sigma, short.cond) for role in ("teacher", "fake"))
        assert torch.equal(at(1.0), fake) and torch.equal(at(0.0), teacher)
        small, half = (at(s) - teacher for s in (2e-3, 1e-3))
        assert relative(small, 2 * half) < 2e-2 and relative(fake, teacher) > 1e-2
        assert torch.equal(bank.velocity("fake", x, sigma, short.cond), fake)


def test_full_mode_has_no_adapter_to_lean_on(short: Table) -> None:
    bank = roles_on(copy.deepcopy(short.backbone), "train_rtdmd", mode="full")
    with pytest.raises(UserError, match=r"annealing\.guidance: 0"), bank.scaled("fake", 0.5):
        pass


def test_annealing_ends(short: Table) -> None:
    annealing = AnnealingParams(guidance=0.75, renoise=True, epochs=10)
    early = DmdrAnnealing(annealing, 0).draws(draws(step=0))
    assert early.uniform("time").mean() > draws(step=0).uniform("time").mean() + 0.1
    assert torch.equal(early.normal("z"), draws(step=0).normal("z"))
    assert torch.equal(early.uniform("delta"), draws(step=0).uniform("delta"))
    part = replace(early, samples=(3, 1))
    assert torch.equal(part.uniform("time"), early.uniform("time")[[3, 1]])
    late = draws(step=10)
    assert DmdrAnnealing(annealing, 10).draws(late) is late
    off = AnnealingParams(guidance=0.0, renoise=False, epochs=5)
    assert DmdrAnnealing(off, 0).draws(late) is late


@pytest.mark.parametrize(("epoch", "differs"), [(0, True), (9, True), (10, False)])
def test_matching_is_annealed_within_the_named_epochs_alone(short: Table, epoch: int, differs: bool) -> None:
    p = settings(matching_path="last_step", weights={"backprop": 0.0})
    annealed = settings(weights={"backprop": 0.0}, annealing={"guidance": 0.75, "renoise": True, "epochs": 10})
    rollout = short.roll_out(p, (0, 2))
    one, other = (last_step(short, rollout, each, draws(step=epoch))[3]["gap"] for each in (p, annealed))
    assert (one != other) == differs
