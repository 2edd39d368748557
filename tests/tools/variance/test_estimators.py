"""The estimators of the variance study on the tiny teacher: where two must agree they do, and prices are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.cli import main
from rtdmd.common.errors import UserError
from rtdmd.config import Params
from rtdmd.plan.budget import Prices
from rtdmd.stages import train_acdmd
from rtdmd.study.variance_table import Figure
from rtdmd.train.rtdmd import RtdmdTrainer
from tests.train.workshop import FREE, count_passes, disturb, make_trainable
from tests.workspace import set_params
from tools.variance import estimators, table
from tools.variance.estimators import CHAIN, ESTIMATORS, REFERENCE, Bench, one_round, open_bench, price, rounds_within

ROOT_CHANGES = {"train_rtdmd": {"group_size": 3, "micro_batch": 4}}


@pytest.fixture(scope="module")
def place(tiny_teacher: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("variance")
    make_trainable(root, tiny_teacher, tiny_clip)
    params = set_params(root, ROOT_CHANGES)
    train_acdmd.run(root)
    return root, params


@pytest.fixture(scope="module")
def bench(place: tuple[Path, Params]) -> Bench:
    root, params = place
    bench = open_bench(params, root, 2)
    disturb(bench.trainer.adapters, "acdmd", scale=0.02)
    return bench


def test_the_chain_moves_the_reward(bench: Bench) -> None:
    """A small step along the whole chain's estimate raises the mean reward of the same rollout by step |g|²."""
    gradient = one_round(bench, CHAIN, 0)
    parameters = bench.trainer.generator.parameters

    def moved(step: float) -> float:
        with torch.no_grad():
            for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
                parameter.add_(step * part.view_as(parameter))
        try:
            return reward_of(bench)
        finally:
            with torch.no_grad():
                for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
                    parameter.sub_(step * part.view_as(parameter))

    step = 1e-2 / float(gradient.norm())
    slope = (moved(step) - moved(-step)) / (2 * step)
    assert slope == pytest.approx(float(gradient @ gradient), rel=0.05)  # a second difference of 1e-2, float32


def reward_of(bench: Bench) -> float:
    """Mean reward of the chain's own rollout, whose noise a second call repeats."""
    seen = {}
    real = estimators.chain_gradient

    def watch(trainer, rollout):  # type: ignore[no-untyped-def]
        (reward,) = trainer.rewards.rewards.values()
        with torch.no_grad():
            images = trainer.backbone.decode(rollout.states[-1])
            prompts = [record["prompt"] for record in rollout.records]
            metadata = [record["metadata"] for record in rollout.records]
            seen["reward"] = reward.score(images, prompts, metadata).mean().item()
        return real(trainer, rollout)

    estimators.chain_gradient = watch
    try:
        one_round(bench, CHAIN, 0)
    finally:
        estimators.chain_gradient = real
    return seen["reward"]


def test_a_round_is_named_by_its_number(bench: Bench) -> None:
    name = "... M = 1, shared noise"
    assert torch.equal(one_round(bench, name, 1), one_round(bench, name, 1))
    assert not torch.equal(one_round(bench, name, 1), one_round(bench, name, 2))


def test_all_rounds_have_the_same_prompts(
    bench: Bench, place: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], RtdmdTrainer.roll_out

    def watch(self, cond, records, *rest):  # type: ignore[no-untyped-def]
        seen.append([record["prompt"] for record in records])
        return real(self, cond, records, *rest)

    monkeypatch.setattr(RtdmdTrainer, "roll_out", watch)
    for name, number in [(CHAIN, 0), (CHAIN, 1), ("... M = 1", 7)]:
        one_round(bench, name, number)
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0])) == 2
    assert seen[0][:3] == [bench.records[0]["prompt"]] * 3  # a group of three a prompt
    assert open_bench(place[1], place[0], 2).records == bench.records


def test_the_hybrid_without_advantages_is_the_last_step_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, whole = RtdmdTrainer.advantages, one_round(bench, REFERENCE, 0)
    monkeypatch.setattr(RtdmdTrainer, "advantages", lambda *arguments: real(*arguments) * 0)
    hybrid = one_round(bench, REFERENCE, 0)
    monkeypatch.setitem(
        ESTIMATORS, REFERENCE, {"weights": {"policy": 0.0}}
    )  # under the same name, which names the noise
    alone = one_round(bench, REFERENCE, 0)
    assert alone.norm() > 0 and torch.equal(hybrid, alone)
    assert not torch.allclose(hybrid, whole)


def test_the_published_density_has_the_gaussians_units(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one step alone the two are the same function of x up to a factor, which the units take out."""
    sigmas, trainer = bench.trainer.sigmas, bench.trainer.variant()
    trainer.sigmas = torch.stack([sigmas[0], sigmas[-2], sigmas[-1]])  # one of the two steps is stochastic
    two_steps = replace(bench, trainer=trainer)
    one_step = {"candidate_steps": [0], "trained_steps": 1}
    monkeypatch.setitem(ESTIMATORS, REFERENCE, one_step)
    gaussian = one_round(two_steps, REFERENCE, 3)
    monkeypatch.setitem(ESTIMATORS, REFERENCE, one_step | {"density": "published", "clip_range": 1e-5})
    published = one_round(two_steps, REFERENCE, 3)
    torch.testing.assert_close(published, gaussian, rtol=1e-3, atol=1e-4 * float(gaussian.abs().max()))


@pytest.mark.parametrize("name", [CHAIN, "last step alone", "random step's estimate (ReFL)", REFERENCE])
def test_a_round_runs_what_it_is_charged_for(name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, decode = count_passes(monkeypatch), type(bench.trainer.backbone).decode

    def decoded(self: Any, x: torch.Tensor) -> torch.Tensor:
        seen["decode"] += len(x)
        return decode(self, x)

    monkeypatch.setattr(type(bench.trainer.backbone), "decode", decoded)
    one_round(bench, name, 0)
    for unit, role in {"two": "generator", "backward": "backward", "decode": "decode"}.items():
        free = replace(bench, prices=Prices(**FREE | {unit: 1.0}))
        assert seen[role] == price(free, name) > 0, unit
    assert set(seen) == {"generator", "backward", "decode"}


def test_a_row_has_as_many_rounds_as_its_cost_pays_for(bench: Bench) -> None:
    for name in ESTIMATORS:
        assert rounds_within(bench, name, 1.0) == 3  # the least
        assert rounds_within(bench, name, 40 * price(bench, name)) == 40


def test_the_command_writes_a_row_an_estimator(
    place: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place[0])
    monkeypatch.setattr(table, "SURE", 0)  # three rounds tell nothing
    monkeypatch.setattr(table, "squared_length", lambda reference: Figure(1.0, 0.5))
    only = ["whole chain", "... stepwise gains"]
    assert main(["variance", "--prompts", "2", "--cost", "1", "--out", "v.csv", "--only", *only]) == 0
    lines = (place[0] / "v.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["estimator", *only]
    assert all(len(line.split(",")) == 11 for line in lines)
    assert main(["variance", "--only", "no such"]) == 2 and "names among 'whole chain'" in capsys.readouterr().err
    assert main(["variance", "--prompts", "1"]) == 2 and "--prompts 1; allowed: 2 to" in capsys.readouterr().err


def test_a_gradient_hidden_by_noise_is_one_line(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "squared_length", lambda reference: Figure(0.2, 0.1))
    with pytest.raises(UserError, match=r"--cost 1: the gradient's squared length is 0\.20 ± 0\.10, not 3 standard"):
        next(table.measure(bench, [REFERENCE], 1.0))


def test_missing_students_are_one_line(place: tuple[Path, Params], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results/prepare_prompts/train\.jsonl: no such file"):
        open_bench(place[1], tmp_path)
