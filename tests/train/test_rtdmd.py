"""Stage two's parts on a tiny teacher: shared noise, what a zero advantage leaves out, scalings, micro-batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdmd.backbones.protocol import Backbone, Conditioning
from rtdmd.common.rng import integers
from rtdmd.config import Params, TrainRtdmdParams, preset, reward_params
from rtdmd.flow.cps import cps_mean_std, gaussian_log_prob, published_log_prob
from rtdmd.flow.path import x0_from_velocity
from rtdmd.rewards.registry import load_reward
from rtdmd.rewards.reward_models import RewardModels
from rtdmd.train.adapters import AdapterBank
from rtdmd.train.engine.diagnostics import SaturationCounter, require_on_policy
from rtdmd.train.learner import Gradients, Learner, Terms, combine
from rtdmd.train.losses import (
    Draws,
    matching_loss,
    micro_batches,
    renoised,
    teacher_guidance,
)
from rtdmd.train.rollout import Rollout, shared_passes
from rtdmd.train.rtdmd import RtdmdTrainer
from rtdmd.world.grammar import captions
from tests.train.workshop import LEVELS, SHAPE, adamw, conditioning, disturb, roles_on, tiny_backbone

GROUPS, SIZE, ETA = 3, 4, 0.9
COUNT = GROUPS * SIZE
GROUP_OF = torch.arange(COUNT) // SIZE
RECORDS = [captions()[80 * int(group)].metadata() for group in GROUP_OF]


def all_settings(**changes: Any) -> Params:
    """Stage two with all three stochastic steps as candidates, two of them trained, and no shared start."""
    own = {"candidate_steps": [0, 1, 2], "trained_steps": 2, "share_initial": False, "micro_batch": 5}
    own |= {"matching_path": "last_step", "prompts_per_epoch": GROUPS, "group_size": SIZE}
    return preset("smoke", {"model": {"guidance": 3.0}, "train_rtdmd": own | changes})


def settings(**changes: Any) -> TrainRtdmdParams:
    return all_settings(**changes).train_rtdmd


@dataclass
class Table:
    """A trainer of stage two whose adapters are away from where they start, and conditioning."""

    trainer: RtdmdTrainer
    cond: Conditioning

    def on(self, p: TrainRtdmdParams, rewards: dict[str, Any] | None = None) -> RtdmdTrainer:
        """The trainer under other settings, and with other rewards where they are named."""
        trainer = self.trainer.variant(self.trainer.params.model_copy(update={"train_rtdmd": p}))
        if rewards is not None:
            trainer.rewards = RewardModels(rewards, torch.device("cpu"))
        return trainer

    @property
    def bank(self) -> AdapterBank:
        return self.trainer.adapters

    @property
    def learner(self) -> Learner:
        return self.trainer.generator

    @property
    def backbone(self) -> Backbone:
        return self.trainer.backbone

    def roll_out(self, p: TrainRtdmdParams, trained: tuple[int, ...], seed: int = 0, step: int = 3) -> Rollout:
        records = [{"prompt": record["prompt"], "metadata": record} for record in RECORDS]
        return self.on(p).roll_out(self.cond, records, GROUP_OF, trained, draws(seed, step))


def draws(seed: int = 0, step: int = 3) -> Draws:
    return Draws(seed, "train_rtdmd", step, tuple(range(COUNT)), SHAPE, torch.device("cpu"))


@pytest.fixture(scope="module")
def table(tiny_teacher: Path, tiny_clip: Path) -> Table:
    backbone = tiny_backbone(tiny_teacher, vae=True)
    bank = roles_on(backbone, "train_rtdmd")
    disturb(bank, "acdmd", "rtdmd", "fake")
    rewards = RewardModels(
        {"clipscore": load_reward(reward_params(name="clipscore", model=str(tiny_clip)))}, backbone.device
    )
    trainer = RtdmdTrainer(all_settings(), backbone, rewards, conditioning(1, "null"), adapters=bank)
    assert torch.equal(trainer.sigmas, LEVELS)
    return Table(trainer, conditioning(GROUPS).repeat_interleave(SIZE))


def noise_of(rollout: Rollout, k: int) -> Tensor:
    """The noise of transition k, (N, D)."""
    return ((rollout.states[k + 1] - rollout.means[k]) / rollout.stds[k][:, None, None, None]).flatten(1)


def within_groups(noise: Tensor) -> float:
    """Largest difference between members of a group, over all groups."""
    members = noise.view(GROUPS, SIZE, -1)
    return (members - members[:, :1]).abs().max().item()


def flat(gradients: Gradients) -> Tensor:
    assert gradients.total is not None
    return torch.cat([gradient.flatten() for gradient in gradients.total])


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def some_advantages() -> Tensor:
    return torch.linspace(-1.5, 1.5, COUNT) ** 3 + 0.1


def test_a_group_shares_its_noise_at_untrained_steps_only(table: Table) -> None:
    rollout = table.roll_out(settings(), trained=(0, 2))
    assert len(rollout.states) == 5 and len(rollout.means) == len(rollout.stds) == 3
    assert within_groups(noise_of(rollout, 1)) < 1e-5
    assert within_groups(noise_of(rollout, 0)) > 3 and within_groups(noise_of(rollout, 2)) > 3
    one, two = noise_of(rollout, 1)[0], noise_of(rollout, 1)[SIZE]
    assert (one - two).abs().max() > 2  # each group its own
    assert within_groups(rollout.states[0].flatten(1)) > 3
    assert rollout.stds[1][0].item() == pytest.approx(0.75 * torch.sin(torch.tensor(0.45 * torch.pi)).item())
    free = table.roll_out(settings(share_noise=False), trained=(0, 2))
    assert within_groups(noise_of(free, 1)) > 3


def test_the_initial_latent_is_shared_where_asked_for(table: Table) -> None:
    rollout = table.roll_out(settings(share_initial=True), trained=(2,))
    assert within_groups(rollout.states[0].flatten(1)) == 0
    # all shared up to step 2: the members of a group are still one image there
    assert within_groups(rollout.states[2].flatten(1)) < 1e-4
    assert within_groups(rollout.states[3].flatten(1)) > 1


def count_passes(table: Table, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that fills with the images of each pass from now on."""
    images, velocity = list[int](), table.bank.velocity

    def counted(role: str, x: Tensor, *rest: Any, **more: Any) -> Tensor:
        images.append(len(x))
        return velocity(role, x, *rest, **more)

    monkeypatch.setattr(table.bank, "velocity", counted)
    return images


def test_images_that_are_still_equal_are_run_once(table: Table) -> None:
    """Steps 0 and 1 of a group with one start: the same states as when each image is run."""
    p = settings(share_initial=True, micro_batch=COUNT)
    with pytest.MonkeyPatch.context() as patch:
        images = count_passes(table, patch)
        once = table.roll_out(p, (2,))
        alone = table.roll_out(p.model_copy(update={"group_size": 1}), (2,))
    assert images == 3 * [GROUPS] + [COUNT] + 4 * [COUNT]
    for one, other in zip(once.states, alone.states, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_shared_noise_depends_on_the_runs_seed_and_the_epoch(table: Table) -> None:
    same, other = (noise_of(table.roll_out(settings(), (0, 2), seed), 1) for seed in (0, 1))
    assert torch.allclose(same, noise_of(table.roll_out(settings(), (0, 2), 0), 1))
    assert (same - other).abs().max() > 2
    later = table.roll_out(settings(), (0, 2), step=4)
    assert (noise_of(later, 1) - same).abs().max() > 2


def test_the_roll_outs_noise_is_standard(table: Table) -> None:
    rollout = table.roll_out(settings(share_noise=False), (0, 1))
    noise = torch.cat([noise_of(rollout, k) for k in range(3)])
    assert noise.mean().item() == pytest.approx(0, abs=0.05) and noise.std().item() == pytest.approx(1, abs=0.04)


def policy_gradient(
    trainer: RtdmdTrainer, rollout: Rollout, advantages: Tensor, trained: tuple[int, ...], terms: Terms | None = None
) -> tuple[Gradients, Gradients, dict[str, float]]:
    """Policy and reference KL, each in a sum of its own, and values."""
    terms = terms or Terms(trainer.generator, dict(trainer.p.weights))
    values = trainer.policy_gradient(rollout, advantages, trained, terms)
    return terms.sums["policy"], terms.sums["reference_kl"], values


@pytest.mark.parametrize("density", ["gaussian", "published"])
@pytest.mark.parametrize("micro", [1, 5, 12, 96])
def test_the_ratio_is_exactly_one_at_the_first_update(table: Table, density: str, micro: int) -> None:
    p = settings(density=density, micro_batch=micro)
    rollout = table.roll_out(p, (0, 2))
    *_, values = policy_gradient(table.on(p), rollout, some_advantages(), (0, 2))
    by_level = {name: values.pop(name) for name in [*values] if name.startswith("grad_policy/sigma=")}
    assert values == {"frac_nonzero_advantage": 1.0, "clip_fraction": 0.0, "ratio_error": 0.0}
    for k, name in zip((0, 2), by_level, strict=True):  # the mean over two trained steps is half of each alone
        alone = policy_gradient(table.on(p), rollout, some_advantages(), (k,))[0]
        assert name == f"grad_policy/sigma={LEVELS[k].item():.3g}"
        assert by_level[name] == pytest.approx(alone.norm() / 2, rel=1e-5)


@pytest.mark.parametrize("density", ["gaussian", "published"])
def test_on_policy_it_is_the_score_function_gradient(table: Table, density: str) -> None:
    """∇ of -mean over trained steps and images of A log p, by one plain pass over everything."""
    p = settings(density=density, clip_range=0.2)
    rollout, advantages = table.roll_out(p, (0, 2)), some_advantages()
    policy, _, _ = policy_gradient(table.on(p), rollout, advantages, (0, 2))
    loss = torch.zeros(())
    for k in (0, 2):
        sigma, tau = LEVELS[k].expand(COUNT), LEVELS[k + 1].expand(COUNT)
        v = table.bank.velocity("generator", rollout.states[k], sigma, table.cond)
        mean, std = cps_mean_std(rollout.states[k], v, sigma, tau, ETA)
        x = rollout.states[k + 1]
        logp = gaussian_log_prob(x, mean, std) if density == "gaussian" else published_log_prob(x, mean)
        loss = loss - (advantages * logp).mean() / 2
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, table.learner.parameters)])
    assert relative(flat(policy), expected) < 1e-5


def test_the_papers_factor_is_the_number_of_candidates_over_the_mean(table: Table) -> None:
    """(K-1)/M over the sum of M steps: three times the mean over the two trained ones."""
    rollout, advantages = table.roll_out(settings(), (0, 2)), some_advantages()
    mean, scaled = (
        policy_gradient(table.on(settings(subset_factor=factor)), rollout, advantages, (0, 2))[0]
        for factor in (False, True)
    )
    assert relative(flat(scaled), 3 * flat(mean)) < 1e-6


def test_zero_advantage_leaves_the_policy_term_only(table: Table) -> None:
    """Four of twelve at zero: they are gone from the policy's mean, and still in the last step's terms."""
    advantages = some_advantages()
    advantages[::3] = 0
    rollout = table.roll_out(settings(), (0, 2))

    def policy(**changes: Any) -> tuple[Tensor, dict[str, float]]:
        gradients, _, values = policy_gradient(table.on(settings(**changes)), rollout, advantages, (0, 2))
        return flat(gradients), values

    dropped, values = policy()
    kept, others = policy(drop_zero_advantage=False)
    assert values["frac_nonzero_advantage"] == pytest.approx(8 / 12) and others["frac_nonzero_advantage"] == 1.0
    assert relative(dropped, kept * 12 / 8) < 1e-5


def test_images_of_zero_advantage_are_not_passed(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of twelve at zero, micro-batches of three: eight images are filled up to nine, and the gradient is that of
    a pass over all twelve."""
    advantages = some_advantages()
    advantages[::3] = 0
    rollout = table.roll_out(settings(), (0, 2))
    everything = policy_gradient(table.on(settings()), rollout, advantages, (0, 2))[0]
    passed = count_passes(table, monkeypatch)
    p = settings(micro_batch=3)
    some = policy_gradient(table.on(p), rollout, advantages, (0, 2))[0]
    assert passed == [3] * 6
    assert relative(flat(some), flat(everything)) < 1e-5
    passed.clear()
    anchored = settings(micro_batch=3, weights={"reference_kl": 0.1})
    policy_gradient(table.on(anchored), rollout, advantages, (0, 2))
    assert passed == [3] * 16  # the reference KL is of all images, and passes the reference too


def test_passes_are_shared_and_filled_up_to_whole_micro_batches() -> None:
    alike = torch.tensor([7, 7, 3, 3, 9, 9])
    needed = torch.tensor([False, True, False, False, True, True])
    assert list(shared_passes(None, needed, 2)) == [([1, 4], [1, 4], [0, 1]), ([5, 0], [5], [0])]
    assert list(shared_passes(alike, needed, 3)) == [([0, 4, 2], [1, 4, 5], [0, 1, 1])]
    assert list(shared_passes(alike, needed, 4)) == [([0, 4, 2], [1, 4, 5], [0, 1, 1])]  # none is left to fill up with
    assert list(shared_passes(None, torch.zeros(6, dtype=torch.bool), 2)) == []


def test_a_group_that_is_still_equal_has_one_pass(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared start, step 1 trained: one row per group is run, in rollout and policy pass, and the gradient is that of
    all images on their own."""
    p = settings(share_initial=True)
    rollout = table.roll_out(p, (1,))
    assert rollout.equal == (True, True, False, False)
    alone = replace(rollout, equal=(False,) * 4)
    advantages = some_advantages()
    expected = policy_gradient(table.on(p), alone, advantages, (1,))[0]
    passed = count_passes(table, monkeypatch)
    mine, _, values = policy_gradient(table.on(p), rollout, advantages, (1,))
    assert passed == [GROUPS] and values["ratio_error"] == 0.0
    assert relative(flat(mine), flat(expected)) < 1e-5


def test_without_any_advantage_the_other_terms_still_train(table: Table) -> None:
    p = settings()
    rollout = table.roll_out(p, (0, 2))
    policy, _, values = policy_gradient(table.on(p), rollout, torch.zeros(COUNT), (0, 2))
    assert values["frac_nonzero_advantage"] == 0.0 and policy.norm() == 0.0
    matching, backprop, _, _ = last_step(table, rollout, p)
    gradient, norms = combine(
        {"policy": (0.5, policy), "matching": (0.3, matching), "backprop": (1.0, backprop)}, "unit_norm"
    )
    assert norms["grad_policy"] == 0.0 and norms["grad_matching"] > 0 and norms["grad_backprop"] > 0
    assert sum(g.abs().sum().item() for g in gradient) > 0
    nothing, _ = combine({"policy": (0.5, policy), "matching": (0.0, matching)}, "unit_norm")
    assert [g.shape for g in nothing] == [g.shape for g in gradient]
    assert all(g.count_nonzero() == 0 for g in nothing)


def last_step(
    table: Table, rollout: Rollout, p: TrainRtdmdParams, own: Draws | None = None
) -> tuple[Gradients, Gradients, Terms, dict[str, float]]:
    """Matching and back-propagation of clipscore, guidance 3; each in a sum of its own."""
    trainer = table.on(p)
    terms = Terms(trainer.generator, dict(p.weights))
    values = trainer.last_step(rollout, own or draws(), terms)
    return terms.sums["matching"], terms.sums["backprop"], terms, values


def test_rewards_in_their_turns_have_the_same_gradient_to_the_last_bit(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offloaded scorer comes once for two of three micro-batches, and once for the third."""
    rollout = table.roll_out(settings(), (0, 2))
    matching, backprop, _, values = last_step(table, rollout, settings())
    trainer = table.on(settings())
    trainer.rewards = replace(trainer.rewards, offloaded=frozenset({"clipscore"}))
    moves = list[torch.device]()
    monkeypatch.setattr(trainer.rewards.rewards["clipscore"], "to", moves.append)
    images = 5 * 3 * 36 * 36 * 4
    monkeypatch.setattr("rtdmd.train.rtdmd.MAX_WAITING", 2 * 2 * images)  # and as much for their gradients
    terms = Terms(trainer.generator, dict(trainer.p.weights))
    assert trainer.last_step(rollout, draws(), terms) == values
    assert len(moves) == 2 * 2
    assert torch.equal(flat(terms.sums["matching"]), flat(matching))
    assert torch.equal(flat(terms.sums["backprop"]), flat(backprop))


def guided() -> dict[str, Any]:
    return {"guidance": 3.0, "null": conditioning(1, "null")}


def scored(table: Table, rollout: Rollout, size: int) -> Tensor:
    trainer = table.on(settings(micro_batch=size))
    with trainer.rewards.scoring(trainer.images(rollout)) as scoring:
        return scoring.scores(torch.device("cpu"))["clipscore"]


def test_saturated_pixels_are_those_at_the_ends(table: Table) -> None:
    trainer = table.on(settings(micro_batch=5))
    pixels = SaturationCounter()
    batches = list(trainer.images(table.roll_out(settings(), (0, 2)), pixels))
    images = torch.cat([images for images, _, _ in batches])
    assert [len(prompts) for _, prompts, _ in batches] == [5, 5, 2]
    assert pixels.total == images.numel()
    assert pixels.saturated == int((images == 0).sum() + (images == 1).sum()) > 0


def test_the_micro_batch_changes_nothing_but_rounding(table: Table) -> None:
    whole = settings(micro_batch=COUNT, weights={"reference_kl": 0.1})
    rollout, advantages = table.roll_out(whole, (0, 2)), some_advantages()
    first = [
        *policy_gradient(table.on(whole), rollout, advantages, (0, 2))[:2],
        *last_step(table, rollout, whole)[:2],
    ]
    scores = scored(table, rollout, COUNT)
    for size in (1, 5):
        p = settings(micro_batch=size, weights={"reference_kl": 0.1})
        again = table.roll_out(p, (0, 2))
        for one, other in zip(again.states, rollout.states, strict=True):
            assert relative(one, other) < 1e-5
        terms = [
            *policy_gradient(table.on(p), rollout, advantages, (0, 2))[:2],
            *last_step(table, rollout, p)[:2],
        ]
        assert [relative(flat(a), flat(b)) < 1e-5 for a, b in zip(terms, first, strict=True)] == [True] * 4
        assert torch.allclose(scored(table, rollout, size), scores, atol=1e-6)
    assert [(r.start, r.stop) for r in micro_batches(12, 5)] == [(0, 5), (5, 10), (10, 12)]


def test_the_last_steps_gradients_are_those_of_their_losses(table: Table) -> None:
    """Back-propagation moves the reward: a small step down its gradient raises the mean score by step times |g|²."""
    p = settings(weights={"matching": 0.3, "backprop": 1.0}, backprop_margin=2.0)
    rollout = table.roll_out(p, (0, 2))
    _, backprop, _, values = last_step(table, rollout, p)
    reward = table.trainer.rewards.rewards["clipscore"]

    def mean_score() -> float:
        with torch.no_grad():
            sigma = LEVELS[3].expand(COUNT)
            v = table.bank.velocity("generator", rollout.states[3], sigma, table.cond)
            images = table.backbone.decode(rollout.states[3] - 0.5 * v)
            return reward.score(images, [r["prompt"] for r in RECORDS], RECORDS).double().mean().item()

    before = mean_score()
    assert values["backprop"] == pytest.approx(2.0 - before, abs=1e-5)
    assert backprop.total is not None
    slope, size = backprop.norm() ** 2, 0.02 / backprop.norm()
    kept = [w.detach().clone() for w in table.learner.parameters]
    with torch.no_grad():
        for w, g in zip(table.learner.parameters, backprop.total, strict=True):
            w.sub_(size * g)
    after = mean_score()
    with torch.no_grad():
        for w, k in zip(table.learner.parameters, kept, strict=True):
            w.copy_(k)
    assert after - before == pytest.approx(size * slope, rel=0.15)


def test_terms_of_weight_zero_are_not_computed(table: Table) -> None:
    rollout = table.roll_out(settings(), (0, 2))
    for off, on in (("matching", "backprop"), ("backprop", "matching")):
        p = settings(weights={off: 0.0, on: 1.0})
        matching, backprop, _, values = last_step(table, rollout, p)
        named = {"matching": matching, "backprop": backprop}
        assert named[off].total is None and values[off] == 0.0
        assert named[on].norm() > 0 and values[on] > 0


def test_the_reference_kl_pulls_towards_stage_one(table: Table) -> None:
    """Zero gradient where generator and reference agree; else that of |μ - μ_ref|² / 2ρ²."""
    p = settings(weights={"reference_kl": 0.1})
    rollout = table.roll_out(p, (1,))
    _, anchor, _ = policy_gradient(table.on(p), rollout, some_advantages(), (1,))
    sigma, tau = LEVELS[1].expand(COUNT), LEVELS[2].expand(COUNT)
    means = [
        cps_mean_std(
            rollout.states[1], table.bank.velocity(role, rollout.states[1], sigma, table.cond), sigma, tau, ETA
        )
        for role in ("generator", "reference")
    ]
    away = (means[0][0] - means[1][0].detach()) / means[0][1][:, None, None, None]
    loss = away.square().flatten(1).sum(1).mean() / 2
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, table.learner.parameters)])
    assert loss > 0.001 and relative(flat(anchor), expected) < 1e-5
    fresh = roles_on(table.backbone, "train_rtdmd")
    untouched = RtdmdTrainer(table.on(p).params, table.backbone, table.trainer.rewards, table.cond, adapters=fresh)
    _, anchor, _ = policy_gradient(untouched, rollout, some_advantages(), (1,))
    assert anchor.norm() == 0.0
    _, none, _ = policy_gradient(table.on(settings()), rollout, some_advantages(), (1,))
    assert none.total is None


def test_the_reference_by_velocities_is_their_mean_square(table: Table) -> None:
    p = settings(weights={"reference_kl": 0.1}, reference_measure="velocities")
    rollout = table.roll_out(p, (1,))
    _, anchor, _ = policy_gradient(table.on(p), rollout, some_advantages(), (1,))
    sigma = LEVELS[1].expand(COUNT)
    own, kept = (table.bank.velocity(role, rollout.states[1], sigma, table.cond) for role in ("generator", "reference"))
    loss = (own - kept.detach()).square().mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, table.learner.parameters)])
    assert loss > 1e-6 and relative(flat(anchor), expected) < 1e-4


def test_the_teachers_guidance_is_drawn_from_its_range(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once an update, the same for every micro-batch; the fake score has none."""
    seen: dict[str, set[float]] = {}
    real = table.bank.velocity

    def velocity(role: str, *given: Any, **options: Any) -> Tensor:
        seen.setdefault(role, set()).add(options.get("guidance", 1.0))
        return real(role, *given, **options)

    monkeypatch.setattr(table.bank, "velocity", velocity)
    p = settings(guidance_range=(2.0, 5.0), micro_batch=5)
    rollout = table.roll_out(p, (1,))
    table.on(p).last_step(rollout, draws(), Terms(table.learner, dict(p.weights)))
    assert seen["teacher"] == {teacher_guidance(table.on(p).params, p, draws())} and seen["fake"] == {1.0}
    assert 2 < min(seen["teacher"]) < 5


def test_unit_norm_gives_each_term_its_weight_as_norm() -> None:
    learner = Learner.adamw([torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))], adamw(0.1))
    a = Gradients(learner, [torch.tensor([3.0, 0.0]), torch.tensor([4.0])])
    b = Gradients(learner, [torch.tensor([0.0, 1e-6]), torch.tensor([0.0])])
    empty = Gradients(learner)
    terms = {"policy": (0.5, a), "matching": (0.3, b), "backprop": (1.0, empty)}
    scaled, norms = combine(terms, "unit_norm")
    assert norms == pytest.approx({"grad_policy": 5.0, "grad_matching": 1e-6, "grad_backprop": 0.0})
    assert torch.cat(scaled).tolist() == pytest.approx([0.3, 0.3, 0.4])
    for name, (weight, gradients) in list(terms.items())[:2]:
        alone, _ = combine({name: (weight, gradients)}, "unit_norm")
        assert torch.cat(alone).norm().item() == pytest.approx(weight)
    plain, _ = combine(terms, "none")
    assert torch.cat(plain).tolist() == pytest.approx([1.5, 3e-7, 2.0])


def test_advantages_come_from_the_named_rewards_and_their_weights(table: Table) -> None:
    specs = [
        {"name": "clipscore", "model": "data/world/clip", "weight": 1.0},
        {"name": "world_verifier", "weight": 0.0, "soft_weight": 0.7},
    ]
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(COUNT, generator=generator) for name in ("world_verifier", "clipscore")}
    mine = table.on(settings(rewards=specs)).advantages(scores, GROUP_OF)
    centred = scores["clipscore"].view(GROUPS, SIZE) - scores["clipscore"].view(GROUPS, SIZE).mean(1, keepdim=True)
    expected = (centred / centred.std(correction=0)).flatten()
    assert torch.allclose(mine, expected, atol=2e-3)
    assert mine.view(GROUPS, SIZE).mean(1).abs().max() < 1e-5
    only = settings(rewards=[specs[0] | {"weight": 0.0}, specs[1] | {"weight": 2.0}], weights={"backprop": 0.0})
    verifier = scores["world_verifier"].view(GROUPS, SIZE)
    expected = (verifier - verifier.mean(1, keepdim=True)).flatten()
    assert torch.allclose(table.on(only).advantages(scores, GROUP_OF), expected / expected.std(correction=0), atol=2e-3)


def test_a_reward_can_be_left_to_back_propagation(table: Table) -> None:
    specs = [
        {"name": "clipscore", "model": "data/world/clip", "weight": 1.0, "policy": False},
        {"name": "world_verifier", "weight": 1.0, "soft_weight": 0.0},
    ]
    scores = {"clipscore": torch.rand(COUNT, generator=torch.Generator().manual_seed(0))}
    scores["world_verifier"] = torch.tensor([1.0, 0.0] + [1.0] * (COUNT - 2))
    mine = table.on(settings(rewards=specs)).advantages(scores, GROUP_OF)
    assert mine[0] > 0 > mine[1] and mine[SIZE:].tolist() == [0.0] * (
        COUNT - SIZE
    )  # exactly 0 in groups of equal rewards
    assert mine.std(correction=0).item() == pytest.approx(1, rel=1e-3)
    clipped = table.on(settings(rewards=specs, advantage_clip=0.25)).advantages(scores, GROUP_OF)
    assert clipped[0] == 0.25 == -clipped[1] and torch.equal(clipped, mine.clamp(-0.25, 0.25))


def chain(table: Table, rollout: Rollout) -> Tensor:
    """x̂_0 through all steps with the rollout's noises, in one piece and without checkpoints."""
    x = rollout.states[0]
    for k in range(4):
        sigma, tau = LEVELS[k].expand(COUNT), LEVELS[k + 1].expand(COUNT)
        mean, std = cps_mean_std(x, table.bank.velocity("generator", x, sigma, table.cond), sigma, tau, ETA)
        x = mean if k == 3 else mean + std[:, None, None, None] * noise_of(rollout, k).view_as(x)
    return x


def test_the_whole_chain_is_the_roll_out_with_a_gradient(table: Table) -> None:
    rollout = table.roll_out(settings(), (0, 2))
    mine, plain = rollout.repeat_chain(table.bank, slice(0, COUNT)), chain(table, rollout)
    assert relative(mine, rollout.states[-1]) < 1e-6
    gradients = [torch.autograd.grad(x.square().mean(), table.learner.parameters) for x in (mine, plain)]
    one, other = (torch.cat([part.flatten() for part in gradient]) for gradient in gradients)
    assert relative(one, other) < 1e-4
    last = x0_from_velocity(
        rollout.states[3],
        table.bank.velocity("generator", rollout.states[3], LEVELS[3].expand(COUNT), table.cond),
        LEVELS[3].expand(COUNT),
    )
    only = torch.autograd.grad(last.square().mean(), table.learner.parameters)
    assert relative(torch.cat([part.flatten() for part in only]), one) > 0.1


def test_the_whole_chain_keeps_no_activations(table: Table) -> None:
    """What autograd holds for the backward pass: some latents a step, far below one step's activations."""
    rollout = table.roll_out(settings(), (0, 2))
    held: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor.numel())
        return tensor

    sizes = []
    for build in (lambda: rollout.repeat_chain(table.bank, slice(0, COUNT)), lambda: chain(table, rollout)):
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            build()
        sizes.append(sum(held))
    assert sizes[0] < 0.05 * sizes[1]


@pytest.mark.parametrize("micro", [5, 12])
def test_matching_through_the_chain_has_its_own_gradient_and_the_same_loss(table: Table, micro: int) -> None:
    rollout = table.roll_out(settings(), (0, 2))
    whole, last = (
        last_step(table, rollout, settings(matching_path=path, micro_batch=micro))
        for path in ("whole_chain", "last_step")
    )
    assert whole[3] == pytest.approx(last[3], rel=1e-4)
    assert whole[2].matching_rewards is last[2].matching_rewards is None
    assert relative(flat(whole[1]), flat(last[1])) < 1e-5  # back-propagation of the reward stays on the last step
    assert relative(flat(whole[0]), flat(last[0])) > 0.1


def test_matching_at_a_random_step_is_stage_ones_at_that_step(table: Table) -> None:
    """Over epochs every step is met; each gradient is one plain pass of stage one's loss at the step's lower level."""
    p = settings(matching_path="random_step", micro_batch=COUNT)
    rollout, met = table.roll_out(p, (0, 2)), set()
    for epoch in range(12):
        own = draws(step=epoch)
        matching, _, terms, _ = last_step(table, rollout, p, own)
        k = integers(0, 4, own.seed, own.stream, epoch, "matching-stop")
        met.add(k)
        sigma, tau = LEVELS[k].expand(COUNT), LEVELS[k + 1].expand(COUNT)
        v = table.bank.velocity("generator", rollout.states[k], sigma, table.cond)
        x_s, _ = cps_mean_std(rollout.states[k], v, sigma, tau, ETA)
        if k < 3:
            x_s = x_s + rollout.states[k + 1] - rollout.means[k]
        point = renoised(rollout.states[k + 1], tau, own, "uniform")
        with torch.no_grad():
            v_fake = table.bank.velocity("fake", point.x_t, point.t, table.cond)
            v_teacher = table.bank.velocity("teacher", point.x_t, point.t, table.cond, **guided())
        loss = matching_loss(x_s, point, v_fake, v_teacher, ETA, own).mean()
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, table.learner.parameters)])
        assert terms.matching_rewards is None and relative(flat(matching), expected) < 1e-4
    assert met == {0, 1, 2, 3}


def test_the_last_step_sees_the_chosen_images_with_their_own_noise(table: Table) -> None:
    """The mean over two halves, each in any order, is the whole."""
    rollout = table.roll_out(settings(), (0, 2))

    def term(rows: list[int]) -> tuple[Tensor, Tensor]:
        own = replace(draws(), samples=tuple(rows))
        matching, backprop, _, _ = last_step(table, rollout.take(rows), settings(), own)
        return flat(matching), flat(backprop)

    whole, one, two = term(list(range(COUNT))), term([7, 0, 3, 11, 2, 9]), term([1, 4, 5, 6, 8, 10])
    for of_all, of_one, of_two in zip(whole, one, two, strict=True):
        assert relative((of_one + of_two) / 2, of_all) < 1e-5 and relative(of_one, of_all) > 0.05


def test_matching_as_a_reward_adds_its_policy_gradient(table: Table) -> None:
    """The term's gradient is the last step's plus that of -(K-1)/M Σ_k mean A log p with A the matching rewards."""
    p = settings(matching_path="reward", subset_factor=False)
    rollout, advantages = table.roll_out(p, (0, 2)), some_advantages()
    matching, _, terms, _ = last_step(table, rollout, p)
    plain, *_ = last_step(table, rollout, settings())
    held = terms.matching_rewards
    assert held is not None and terms.sums["matching"] is matching
    assert held.view(GROUPS, SIZE).mean(1).abs().max() < 1e-3 * held.abs().max()
    before = flat(matching)
    assert relative(before, flat(plain)) < 1e-5
    policy, _, _ = policy_gradient(table.on(p), rollout, advantages, (0, 2), terms)
    alone, _, _ = policy_gradient(table.on(p), rollout, held, (0, 2))
    assert relative(flat(matching) - before, 3 * flat(alone)) < 1e-4
    unheld, _, _ = policy_gradient(table.on(p), rollout, advantages, (0, 2))
    assert relative(flat(policy), flat(unheld)) < 1e-6


def test_a_ratio_off_one_at_the_first_update_is_an_error_tied_to_the_clip_range(table: Table) -> None:
    """Means that differ by 1e-5, as from another kernel: too much for a clip range of 1e-3, nothing for one of 10."""
    p = settings(density="gaussian")
    rollout = table.roll_out(p, (0, 2))
    moved = replace(rollout, means=[mean + 1e-5 for mean in rollout.means])
    *_, values = policy_gradient(table.on(p), moved, some_advantages(), (0, 2))
    assert 1e-4 < values["ratio_error"] < 1.0
    with pytest.raises(
        FloatingPointError, match=r"differs from 1 by .* at the first update of an epoch, .* clip_range: 0.001; rollout"
    ):
        require_on_policy(values["ratio_error"], 1e-3)
    require_on_policy(values["ratio_error"], 10.0)
    require_on_policy(0.0, 1e-5)
    with pytest.raises(FloatingPointError, match="differs from 1 by nan"):
        require_on_policy(float("nan"), 0.2)


def test_without_matching_and_back_propagation_the_last_step_is_not_run(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = settings(weights={"matching": 0.0, "backprop": 0.0})
    rollout = table.roll_out(p, (0, 2))
    monkeypatch.setattr(AdapterBank, "velocity", lambda *_, **__: pytest.fail("a forward pass for nothing"))
    matching, backprop, terms, values = last_step(table, rollout, p)
    assert matching.total is backprop.total is terms.matching_rewards is None
    assert values == dict.fromkeys(("matching", "backprop", "gap", "image_grad/matching", "image_grad/backprop"), 0.0)
