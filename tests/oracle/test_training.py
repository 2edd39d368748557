"""The oracle behind the real protocols, and stage one's own iteration on it."""

import math

import pytest
import torch

from rtdmd.backbones.protocol import Backbone
from rtdmd.flow import matching
from rtdmd.oracle import training
from rtdmd.oracle.backbone import OracleBackbone, OracleReward
from rtdmd.oracle.setting import Setting
from rtdmd.train import losses
from rtdmd.train.acdmd import AcdmdTrainer
from rtdmd.train.adapters import ADAPTERS, AdapterBank

SHORT = {"iterations": 200, "batch_size": 128, "micro_batch": 128, "ema_decay": 0.9}


def fresh_roles(width: int = 16) -> AdapterBank:
    params = training.oracle_params("train_acdmd", {})
    return AdapterBank(OracleBackbone(training.MIXTURE, width), params.adapter, ADAPTERS["train_acdmd"], 0)


def test_a_fresh_role_is_the_exact_teacher():
    bank, cond = fresh_roles(), training.every_prompt(training.MIXTURE, 9)
    backbone: Backbone = bank.backbone
    x, sigma = torch.randn(9, *backbone.latent_shape()), torch.linspace(0, 1, 9)
    exact = training.MIXTURE.velocity(x, sigma, cond.tensors["prompt"])
    for role in ("teacher", "generator", "fake"):
        assert torch.equal(bank.velocity(role, x, sigma, cond), exact)


def test_training_one_role_leaves_the_others_alone():
    bank, cond = fresh_roles(), training.every_prompt(training.MIXTURE, 9)
    x, sigma = torch.randn(9, 2, 1, 1), torch.linspace(0, 1, 9)
    before = bank.velocity("teacher", x, sigma, cond)
    with torch.no_grad():
        for weight in bank.trainable("acdmd"):
            weight.add_(0.1)
    assert not torch.allclose(bank.velocity("generator", x, sigma, cond), before)
    assert torch.equal(bank.velocity("teacher", x, sigma, cond), before)
    assert torch.equal(bank.velocity("fake", x, sigma, cond), before)


def test_the_oracle_speaks_the_backbones_language():
    backbone = OracleBackbone(training.MIXTURE)
    torch.testing.assert_close(backbone.sigmas(4), torch.tensor([1, 0.9, 0.75, 0.5, 0]))
    assert backbone.encode(["2", "0"]).tensors["prompt"].tolist() == [2, 0]
    with pytest.raises(ValueError, match="guidance"):
        backbone.velocity(
            backbone.transformer, torch.ones(1, 2, 1, 1), torch.ones(1), backbone.encode(["0"]), guidance=3
        )
    x = torch.tensor([[[[1.0]], [[2.0]]]])
    assert float(OracleReward(2.0).score(x, ["0"], [None])) == pytest.approx(2 * (0.8 - 1.0 - (0.6 + 0.8 + 3.6) / 2))


def test_energy_distance_is_zero_for_one_law_and_known_for_points():
    x, y = torch.randn(2, 4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert abs(training.energy_distance(x, y)) < 3e-3
    assert training.energy_distance(torch.zeros(2, 2), torch.full((2, 2), 3.0)) == pytest.approx(
        6 * math.sqrt(2), rel=1e-6
    )


def test_stage_one_approaches_the_teacher_and_against_the_direction_it_leaves(monkeypatch):
    start = training.teacher_distance(fresh_roles(), training.MIXTURE)
    assert start == pytest.approx(0.133, abs=0.01)
    assert training.distance_after(Setting(), SHORT) < 0.75 * start

    def backwards(y_fake, y_teacher, x_s, normalise):
        return -matching.dmd_direction(y_fake, y_teacher, x_s, normalise)

    monkeypatch.setattr(losses, "dmd_direction", backwards)
    assert training.distance_after(Setting(), SHORT | {"iterations": 50}) > 1.25 * start


def test_the_fake_score_is_told_the_step_of_the_roll_out(monkeypatch):
    """The step that the fake score reads is the one at which the iteration stopped; nobody else reads one."""
    told, stops, levels = [], [], training.OracleBackbone(training.MIXTURE).sigmas(4)
    real, roll_out = OracleBackbone.velocity, AcdmdTrainer.roll_out

    def velocity(self, transformer, x, sigma, cond, **more):
        told.append(cond.tensors.get("step"))
        return real(self, transformer, x, sigma, cond, **more)

    def stopped(self, cond, ladder, *more, **keywords):
        x, s = roll_out(self, cond, ladder, *more, **keywords)
        assert all(step is None for step in told)  # the generator's passes
        told.clear()
        stops.append(len(ladder) - 2)
        assert float(s[0]) == float(levels[stops[-1] + 1])
        return x, s

    monkeypatch.setattr(OracleBackbone, "velocity", velocity)
    monkeypatch.setattr(AcdmdTrainer, "roll_out", stopped)
    ends = []
    iteration = AcdmdTrainer.step

    def once(*args, **more):
        values = iteration(*args, **more)
        ends.append([int(step[0]) for step in told if step is not None])
        told.clear()
        return values

    monkeypatch.setattr(AcdmdTrainer, "step", once)
    training.train_stage_one(training.MIXTURE, SHORT | {"iterations": 8}, Setting(), width=8, step_aware=True)
    assert ends == [[stop] for stop in stops] and len(set(stops)) > 1
