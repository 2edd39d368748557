"""Stage two's own rollout, policy gradient and last step on the oracle: together the gradient of E r (T6, T7)."""

import pytest
import torch

from rtdmd.flow.policy import subtract_baseline
from rtdmd.oracle import training
from rtdmd.oracle.backbone import OracleBackbone, OracleReward
from rtdmd.oracle.gradients import Chains, roll_out
from rtdmd.oracle.identities import reward
from rtdmd.oracle.mixture import ring
from rtdmd.rewards.reward_models import RewardModels
from rtdmd.train.learner import Terms
from rtdmd.train.rtdmd import RtdmdTrainer

MIXTURE = ring(variance=0.2)
MEMBERS = 6
COUNT = 12_000
CHANGES = {
    "density": "gaussian",
    "baseline": "leave_one_out",
    "clip_range": 1e-3,
    "advantage_clip": 1e6,
    "backprop_margin": 1e3,
    "backprop_at": "last_step",
    "candidate_steps": [0, 1, 2],
    "trained_steps": 2,
    "group_size": MEMBERS,
    "micro_batch": COUNT,
    "weights": {"matching": 0.0, "backprop": 1.0},
}


def stage_two(seed: int = 0, **changes):
    """(trainer, conditioning, records, groups, draws) of one epoch on the oracle."""
    params = training.oracle_params("train_rtdmd", CHANGES | changes)
    backbone = OracleBackbone(MIXTURE, width=8)
    rewards = RewardModels({spec.name: OracleReward() for spec in params.train_rtdmd.rewards}, backbone.device)
    trainer = RtdmdTrainer(params, backbone, rewards, training.every_prompt(MIXTURE, 1))
    groups = torch.arange(COUNT) // MEMBERS
    cond = training.every_prompt(MIXTURE, MIXTURE.prompts).index(groups % MIXTURE.prompts)
    draws = training.BatchDraws(seed, "test", 0, tuple(range(COUNT)), (2, 1, 1), torch.device("cpu"))
    records = [{"prompt": str(int(group) % MIXTURE.prompts), "metadata": None} for group in groups]
    return trainer, cond, records, groups, draws


def flat(gradients) -> torch.Tensor:
    """One vector of a term's gradient over the last layer: the earlier ones have none, the last starts at zero."""
    return torch.cat([part.reshape(-1) for part in gradients.total[-2:]])


def hybrid_gradient(trained, **changes):
    """Stage two's estimate of ∇E r, its largest |ratio - 1|, with the advantages' scale taken out."""
    trainer, cond, records, groups, draws = stage_two(**changes)
    p = trainer.p
    rollout = trainer.roll_out(cond, records, groups, trained, draws)
    scores = reward(rollout.states[-1])
    advantages = trainer.advantages({spec.name: scores for spec in p.rewards}, groups)
    centred = subtract_baseline(scores[None], groups, "leave_one_out")[0]
    scale = float((advantages @ centred) / (centred @ centred))
    terms = Terms(trainer.generator, dict(p.weights))
    values = trainer.policy_gradient(rollout, advantages, trained, terms)
    trainer.last_step(rollout, draws, terms)
    policy, backprop = terms.sums["policy"], terms.sums["backprop"]
    steps = 1 if p.subset_factor else len(trained)  # without the factor the term is the mean over the trained steps
    return -(flat(policy) / scale * steps + flat(backprop)), values["ratio_error"]


def exact_gradient():
    """Pathwise through the whole chain."""
    trainer, cond, _, groups, draws = stage_two(seed=1)
    noises = [draws.normal(f"{k}").flatten(1) for k in range(4)]

    def velocity(x, sigma):
        return trainer.adapters.velocity("generator", x[..., None, None], sigma, cond).flatten(1)

    final, _ = roll_out(velocity, Chains(noises[0], torch.stack(noises[1:]), groups), pathwise=True)
    gradient = torch.autograd.grad(reward(final).mean(), trainer.generator.parameters[-2:])
    return torch.cat([part.reshape(-1) for part in gradient])


def relative(estimate, exact) -> float:
    return float((estimate - exact).norm() / exact.norm())


@pytest.fixture(scope="module")
def exact():
    return exact_gradient()


def test_all_steps_trained_is_the_gradient_of_the_reward_and_the_ratio_is_one(exact):
    estimate, ratio_error = hybrid_gradient((0, 1, 2))
    assert ratio_error == 0.0
    assert relative(estimate, exact) < 0.08


def test_shared_noise_with_the_subset_factor_is_unbiased(exact):
    """Mean over the three subsets of two steps, each summed and scaled by (K-1)/M."""
    parts = [hybrid_gradient(steps, subset_factor=True)[0] for steps in ((0, 1), (0, 2), (1, 2))]
    assert relative(sum(parts) / 3, exact) < 0.08


def test_without_the_factor_or_with_the_published_density_it_is_not(exact):
    parts = [hybrid_gradient(steps, subset_factor=False)[0] for steps in ((0, 1), (0, 2), (1, 2))]
    assert relative(sum(parts) / 3, exact) > 0.1
    assert relative(hybrid_gradient((0, 1, 2), density="published")[0], exact) > 0.1
