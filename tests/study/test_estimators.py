"""The estimators of the variance study on the tiny teacher: where two must agree they do, and prices are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rtdmd.cli import main
from rtdmd.config import Params
from rtdmd.errors import UserError
from rtdmd.stages import train_acdmd
from rtdmd.study.estimators import CHAIN, ESTIMATORS, REFERENCE, Bench, one_round, open_bench, price, rounds_within
from rtdmd.study.moments import moments
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
    bench = open_bench(params, root, 2)
    disturb(bench.roles, "acdmd", scale=0.02)
    return bench


def test_the_chain_moves_the_reward(bench: Bench) -> None:
    """A small step along the whole chain's estimate raises the mean reward of the same roll-out by step |g|²."""
    gradient = one_round(bench, CHAIN, 0)
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
    """Mean reward of the chain's own roll-out, whose noise a second call repeats."""
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
        one_round(bench, CHAIN, 0)
    finally:
        estimators.chain_gradient = real
    return seen["reward"]


def test_a_round_is_named_by_its_number(bench: Bench) -> None:
    name = "... M = 1, shared noise"
    assert torch.equal(one_round(bench, name, 1), one_round(bench, name, 1))
    assert not torch.equal(one_round(bench, name, 1), one_round(bench, name, 2))


def test_all_rounds_have_the_same_prompts(bench: Bench, place: tuple[Path, Params]) -> None:
    from rtdmd.study import estimators

    seen, real = [], estimators.roll_out

    def watch(roles, cond, records, *rest):  # type: ignore[no-untyped-def]
        seen.append([record["prompt"] for record in records])
        return real(roles, cond, records, *rest)

    estimators.roll_out = watch
    try:
        for name, number in [(CHAIN, 0), (CHAIN, 1), ("... M = 1", 7)]:
            one_round(bench, name, number)
    finally:
        estimators.roll_out = real
    assert seen[0] == seen[1] == seen[2] and len(set(seen[0])) == 2
    assert seen[0][:3] == [bench.records[0]["prompt"]] * 3  # a group of three a prompt
    again = open_bench(place[1], place[0], 2)
    assert again.records == bench.records


def test_the_last_steps_part_is_in_every_hybrid(bench: Bench) -> None:
    """Without advantages the hybrid is the last step alone."""
    from rtdmd.study import estimators

    real = estimators.advantages_of
    try:
        estimators.advantages_of = lambda scores, groups, p: real(scores, groups, p) * 0 + 1e-30
        hybrid = one_round(bench, REFERENCE, 0, "same")
    finally:
        estimators.advantages_of = real
    whole = one_round(bench, REFERENCE, 0, "same")
    assert not torch.allclose(hybrid, whole)
    assert hybrid.norm() > 0


def test_every_estimator_spends_its_price(bench: Bench) -> None:
    for name in ESTIMATORS:
        assert rounds_within(bench, name, 1.0) == 3  # the least
        assert rounds_within(bench, name, 40 * price(bench, name)) == 40
    gap, images = price(bench, CHAIN) - price(bench, "last step alone"), 2 * 3
    earlier = bench.params.model.num_steps - 1  # steps that the chain runs twice and goes back through
    assert gap == pytest.approx(images * earlier * (2 * 1.0 + 1.4))


def test_the_command_writes_a_row_an_estimator(
    place: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place[0])
    only = ["whole chain", "... stepwise gains"]
    assert main(["variance", "--prompts", "2", "--cost", "1", "--out", "v.csv", "--only", *only]) == 0
    lines = (place[0] / "v.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["estimator", *only]
    assert all(len(line.split(",")) == 13 for line in lines)
    assert main(["variance", "--only", "no such"]) == 2 and "names among 'whole chain'" in capsys.readouterr().err
    assert main(["variance", "--prompts", "1"]) == 2 and "1 prompts; allowed: 2 to" in capsys.readouterr().err


def test_halving_the_share_halves_the_noise_and_leaves_the_bias(bench: Bench) -> None:
    rounds = torch.stack([one_round(bench, "last step alone", number) for number in range(4)])
    reference = torch.stack([one_round(bench, REFERENCE, number, "reference") for number in range(4)])
    whole, half = moments(rounds, reference), moments(rounds, reference, 0.5)
    assert half.noise.value == pytest.approx(whole.noise.value / 2)
    assert half.bias == whole.bias
    assert half.error.value == pytest.approx(half.noise.value + half.bias.value)


def test_missing_students_are_one_line(place: tuple[Path, Params], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results/prepare_prompts/train\.jsonl: no such file"):
        open_bench(place[1], tmp_path)
