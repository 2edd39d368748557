"""The estimators of the variance study on the tiny teacher: where two must agree they do, and prices are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rtdmd.cli import main
from rtdmd.config import Params
from rtdmd.errors import UserError
from rtdmd.stages import train_acdmd
from rtdmd.study.estimators import ESTIMATORS, REFERENCE, Bench, estimate, open_bench, prompts_within
from tests.train.workshop import disturb, make_trainable
from tests.workspace import set_params

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
    bench = open_bench(params, root)
    disturb(bench.roles, "acdmd", scale=0.02)
    return bench


def test_the_reference_moves_the_reward(bench: Bench) -> None:
    """A small step along the whole chain's estimate raises the mean reward of the same roll-out by step |g|²."""
    gradient = estimate(bench, REFERENCE, 2, 0)
    parameters = bench.learner.parameters

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
    """Mean reward of the reference's own roll-out, whose noise a second call repeats."""
    from rtdmd.study import estimators

    seen = {}
    real = estimators.chain_gradient

    def watch(bench: Bench, rollout, size: int, eta: float):  # type: ignore[no-untyped-def]
        (reward,) = bench.panel.rewards.values()
        with torch.no_grad():
            images = bench.backbone.decode(rollout.states[-1])
            seen["reward"] = reward.score(images, *estimators.describe(rollout.records)).mean().item()
        return real(bench, rollout, size, eta)

    estimators.chain_gradient = watch
    try:
        estimate(bench, REFERENCE, 2, 0)
    finally:
        estimators.chain_gradient = real
    return seen["reward"]


def test_an_estimate_is_named_by_its_repeat(bench: Bench) -> None:
    name = "... M = 1, shared noise"
    assert torch.equal(estimate(bench, name, 2, 1), estimate(bench, name, 2, 1))
    assert not torch.equal(estimate(bench, name, 2, 1), estimate(bench, name, 2, 2))


def test_the_last_steps_part_is_in_every_hybrid(bench: Bench) -> None:
    """Without advantages the hybrid is the last step alone."""
    from rtdmd.study import estimators

    real = estimators.advantages_of
    try:
        estimators.advantages_of = lambda scores, groups, p: real(scores, groups, p) * 0 + 1e-30
        hybrid = estimate(bench, "policy + last step", 2, 0, "same")
    finally:
        estimators.advantages_of = real
    whole = estimate(bench, "policy + last step", 2, 0, "same")
    assert not torch.allclose(hybrid, whole)
    assert hybrid.norm() > 0


def test_every_estimator_spends_its_price(bench: Bench) -> None:
    for name in ESTIMATORS:
        two = prompts_within(bench, name, 1.0)
        assert two[0] == 2  # the least
        count, spent = prompts_within(bench, name, 40 * two[1])
        assert count == 80 and spent == pytest.approx(40 * two[1])
    assert prompts_within(bench, REFERENCE, 1e4)[0] < prompts_within(bench, "last step alone", 1e4)[0]


def test_the_command_writes_a_row_an_estimator(
    place: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place[0])
    only = ["whole chain", "... stepwise gains"]
    assert main(["variance", "--cost", "1", "--repeats", "3", "--out", "v.csv", "--only", *only]) == 0
    lines = (place[0] / "v.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["estimator", *only]
    assert all(len(line.split(",")) == 11 for line in lines)
    assert main(["variance", "--only", "no such"]) == 2 and "names among 'whole chain'" in capsys.readouterr().err


def test_missing_students_are_one_line(place: tuple[Path, Params], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results/prepare_prompts/train\.jsonl: no such file"):
        open_bench(place[1], tmp_path)
