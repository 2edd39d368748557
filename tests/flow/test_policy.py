"""Advantages against hand computation, the clipped ratio, SubGRPO's subset, the reference KL."""

import math

import pytest
import torch

from rtdmd.flow import policy
from rtdmd.flow.cps import gaussian_log_prob

REWARDS = torch.tensor([[1.0, 3.0, 2.0, 6.0], [0.0, 0.0, 1.0, 0.0]]).double()
GROUPS = torch.tensor([7, 7, 4, 4])
WEIGHTS = torch.tensor([1.0, 0.5]).double()


def test_advantages_by_hand():
    """Group means 2 and 4 (0 and 0.5); batch std sqrt(3.5) (sqrt(3)/4); then weighted sum and batch normalisation."""
    first = [-1 / math.sqrt(3.5), 1 / math.sqrt(3.5), -2 / math.sqrt(3.5), 2 / math.sqrt(3.5)]
    second = [0, 0, 0.5 / (math.sqrt(3) / 4), -0.5 / (math.sqrt(3) / 4)]
    total = torch.tensor([a + 0.5 * b for a, b in zip(first, second, strict=True)], dtype=torch.float64)
    expected = (total - total.mean()) / total.std(correction=0)
    advantages = policy.group_advantages(REWARDS, GROUPS, WEIGHTS, eps=0.0)
    torch.testing.assert_close(advantages, expected, rtol=1e-12, atol=1e-12)


def test_group_std_by_hand():
    expected = torch.tensor([-1.0, 1.0, -1.0, 1.0]).double()
    advantages = policy.group_advantages(REWARDS[:1], GROUPS, WEIGHTS[:1], std="group", eps=0.0)
    torch.testing.assert_close(advantages, expected, rtol=1e-12, atol=0)


def test_leave_one_out_subtracts_the_mean_of_the_others():
    rewards, groups = torch.tensor([[1.0, 3.0, 8.0, 2.0, 4.0]]).double(), torch.tensor([0, 0, 0, 1, 1])
    centred = policy.subtract_baseline(rewards, groups, "leave_one_out")
    torch.testing.assert_close(centred[0], torch.tensor([-4.5, -1.5, 6.0, -2.0, 2.0]).double(), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match="at least two"):
        policy.group_advantages(rewards, torch.tensor([0, 0, 0, 1, 2]), WEIGHTS[:1], baseline="leave_one_out")


def test_scale_order_and_degenerate_batches():
    rewards = torch.zeros(1, 200)
    rewards[0, 0] = 1
    groups = torch.zeros(200, dtype=torch.long)
    one = policy.group_advantages(rewards, groups, torch.ones(1), eps=0.0).max()
    assert float(one) == pytest.approx(199**0.5)  # one of 200 images is right
    assert torch.equal(policy.group_advantages(torch.ones(1, 4), GROUPS, torch.ones(1)), torch.zeros(4))
    order = torch.randperm(4, generator=torch.Generator().manual_seed(0))
    shuffled = policy.group_advantages(REWARDS[:, order], GROUPS[order], WEIGHTS)
    torch.testing.assert_close(
        shuffled, policy.group_advantages(REWARDS, GROUPS, WEIGHTS)[order], rtol=1e-12, atol=1e-12
    )


def test_bad_rewards_are_refused():
    with pytest.raises(FloatingPointError, match="rewards"):
        policy.group_advantages(REWARDS * float("inf"), GROUPS, WEIGHTS)
    with pytest.raises(ValueError, match="shapes"):
        policy.group_advantages(REWARDS, GROUPS[:3], WEIGHTS)
    with pytest.raises(ValueError, match="unknown"):
        policy.group_advantages(REWARDS, GROUPS, WEIGHTS, std="image")


def test_ratio_is_exactly_one_on_policy_and_the_gradient_is_the_score_function():
    mean = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x, std, advantages = mean.detach() + 0.3, torch.full((5,), 0.3), torch.tensor([1.0, -2.0, 0.0, 0.5, 5.0])
    logp = gaussian_log_prob(x, mean, std)
    loss, ratio, fraction = policy.clipped_policy_loss(logp, logp.detach(), advantages, 1e-5)
    assert torch.equal(ratio.detach(), torch.ones(5)) and float(fraction) == 0
    gradient = torch.autograd.grad(loss.sum(), mean, retain_graph=True)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(-(advantages * logp).sum(), mean)[0])


def test_clipping_cuts_the_gradient_only_where_it_would_grow():
    logp = torch.tensor([0.3, 0.3, -0.3, -0.3, 0.05]).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    loss, _, fraction = policy.clipped_policy_loss(logp, torch.zeros(5), advantages, 0.2)
    gradient = torch.autograd.grad(loss.sum(), logp)[0]
    assert [bool(g != 0) for g in gradient] == [False, True, True, False, True]
    assert float(fraction) == pytest.approx(0.8)
    assert loss.tolist()[0::3] == pytest.approx([-math.exp(0.2), math.exp(-0.2)])


def test_wide_clip_ranges_of_true_log_densities_stay_meaningful():
    loss, ratio, _ = policy.clipped_policy_loss(torch.tensor([-1.5]), torch.zeros(1), torch.tensor([-1.0]), 2.4)
    assert float(loss) == pytest.approx(math.exp(-1.5)) and float(ratio) == pytest.approx(math.exp(-1.5))


def test_step_subset_and_its_factor():
    assert policy.draw_step_subset([2, 0, 1], 2) == (0, 2)
    assert policy.draw_step_subset(torch.tensor([1, 2, 0]), 1) == (1,)
    assert policy.subset_factor(4, 2) == 1.5
    with pytest.raises(ValueError, match="cannot train 4 of 3"):
        policy.draw_step_subset([0, 1, 2], 4)


def test_subset_factor_makes_the_subset_unbiased():
    steps = torch.tensor([0.3, -1.0, 2.0])
    subsets = [(0, 1), (0, 2), (1, 2)]
    mean = sum(policy.subset_factor(4, 2) * steps[list(s)].sum() for s in subsets) / 3
    assert float(mean) == pytest.approx(float(steps.sum()))


def test_reference_kl_is_torchs():
    p, q, std = (
        torch.randn(3, 4, 2, 2).double(),
        torch.randn(3, 4, 2, 2).double(),
        torch.tensor([0.5, 1.0, 0.1]).double(),
    )
    wide = std.view(3, 1, 1, 1).expand_as(p)
    normal = torch.distributions.Normal
    golden = torch.distributions.kl_divergence(normal(p, wide), normal(q, wide)).flatten(1).sum(1)
    torch.testing.assert_close(policy.gaussian_kl(p, q, std), golden, rtol=1e-12, atol=0)


def test_without_a_std_advantages_keep_the_rewards_units():
    """Group means 2 and 4 (0 and 0.5), weighted sum, nothing else."""
    expected = torch.tensor([-1.0, 1.0, -1.75, 1.75]).double()
    for factor in (1.0, 100.0):
        advantages = policy.group_advantages(factor * REWARDS, GROUPS, WEIGHTS, std="none")
        torch.testing.assert_close(advantages, factor * expected, rtol=1e-12, atol=0)


def test_the_batch_normalisation_takes_the_leave_one_out_baseline_out_again():
    """Leave-one-out is the group mean's advantage times N/(N-1); dividing by the batch's std removes a factor."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(2, 24, generator=generator, dtype=torch.float64)
    groups = torch.arange(24) // 6
    mean, others = (
        [policy.group_advantages(rewards, groups, WEIGHTS, baseline=baseline, std=std) for std in ("batch", "none")]
        for baseline in ("group_mean", "leave_one_out")
    )
    torch.testing.assert_close(mean[0], others[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(mean[1] * 6 / 5, others[1], rtol=1e-12, atol=0)
