"""What a bfloat16 network may not round: levels, coefficients, transitions and densities stay float32."""

from typing import ClassVar

import pytest
import torch

from rtdmd.flow import ambient, cps
from rtdmd.flow.schedule import shift_static
from rtdmd.oracle import reinforcement
from rtdmd.oracle.setting import Setting
from rtdmd.oracle.training import BatchDraws
from rtdmd.train.rtdmd import RtdmdTrainer

SMALL = {"prompts_per_epoch": 4, "group_size": 4, "micro_batch": 16, "fake_batch_size": 16}


class Recorded(reinforcement.StudentAdapterBank):
    """Every level that any role is asked at, and the dtype of what it answers."""

    seen: ClassVar[list[torch.Tensor]] = []

    def velocity(self, role, x, sigma, cond, **more):
        v = super().velocity(role, x, sigma, cond, **more)
        assert x.dtype == sigma.dtype == v.dtype == torch.float32
        self.seen.append(sigma)
        return v


@pytest.mark.parametrize("path", ["last_step", "whole_chain", "reward"])
def test_an_epoch_with_a_bfloat16_network_computes_its_levels_in_float32(monkeypatch, path):
    monkeypatch.setattr(reinforcement, "StudentAdapterBank", Recorded)
    monkeypatch.setattr(Recorded, "seen", [])
    mixture = reinforcement.MIXTURE
    trainer = reinforcement.start_stage_two(
        mixture, SMALL | {"matching_path": path}, Setting(dtype="bfloat16"), width=8
    )
    cond, records, _ = reinforcement.images(trainer.p, mixture)
    rollouts = []
    real = RtdmdTrainer.roll_out
    monkeypatch.setattr(RtdmdTrainer, "roll_out", lambda *args: rollouts.append(real(*args)) or rollouts[-1])
    draws = BatchDraws(0, "test", 0, tuple(range(16)), (2, 1, 1), torch.device("cpu"))
    values = trainer.step(cond, records, draws)
    assert values["ratio_error"] == 0.0
    (rollout,) = rollouts
    parts = [*rollout.states, *rollout.means, *rollout.stds, rollout.sigmas]
    assert all(part.dtype == torch.float32 for part in parts)
    levels = torch.cat([sigma.flatten() for sigma in Recorded.seen])
    assert (levels.bfloat16().float() != levels).float().mean() > 0.3  # they were never rounded to bfloat16


def test_equations_fed_with_bfloat16_answer_in_float32():
    x = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0)).bfloat16()
    s, t = torch.full((3,), 0.5).bfloat16(), torch.full((3,), 0.75).bfloat16()
    mean, std = cps.cps_mean_std(x, x, t, s, 0.9)
    answers = [mean, std, cps.gaussian_log_prob(x, mean, std), cps.published_log_prob(x, mean)]
    answers += [ambient.renoise(x, x, s, t), ambient.ambient_target(x, x, s, t), ambient.target_variance(s, t)]
    answers += [cps.eta_star(s, t), *ambient.renoise_coefficients(s, t), shift_static(s, 3.0)]
    assert [answer.dtype for answer in answers] == [torch.float32] * len(answers)
