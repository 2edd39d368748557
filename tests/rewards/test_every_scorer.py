"""What holds for all scorers of the registry alike, each on a tiny model in its published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtdmd.common.errors import NonFiniteError, UserError
from rtdmd.common.files import read_json, write_json
from rtdmd.rewards.golden import TOLERANCE, check_rewards
from rtdmd.rewards.golden_cases import case_of
from rtdmd.rewards.protocol import Reward, identities
from rtdmd.rewards.registry import NAMES, REWARDS, load_reward
from tests.rewards.tiny_scorers import entry


@pytest.fixture(scope="module", params=NAMES)
def reward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reward:
    return load_reward(entry(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def recorded(reward: Reward, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scorer's golden record."""
    root = tmp_path_factory.mktemp("golden")
    (path,) = check_rewards([reward], root)
    assert path.name.startswith(f"{reward.name}-")
    return root


def test_the_second_check_finds_what_the_first_recorded(reward: Reward, recorded: Path) -> None:
    assert check_rewards([reward], recorded) == []


def test_another_score_than_the_recorded_one_aborts(reward: Reward, recorded: Path) -> None:
    (path,) = (recorded / ".rtdmd" / "golden").iterdir()
    record = read_json(path)
    spread = max(max(record["scores"]) - min(record["scores"]), 1e-3)
    changed = [record["scores"][0] + 2 * TOLERANCE * spread, *record["scores"][1:]]
    try:
        write_json(path, record | {"scores": changed})
        with pytest.raises(UserError, match=f"reward {reward.name} gives .* at drawn image 0 where"):
            check_rewards([reward], recorded)
    finally:
        write_json(path, record)


@pytest.mark.parametrize("picture", ["one score", "no picture"])
def test_a_score_that_does_not_vary_aborts(
    reward: Reward, picture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same for every pair, and the scorer's own score of a black sheet whatever the picture is. geneval is let
    pass: whether its drawings differ to a detector is not known beforehand (golden_cases), only its record tells."""
    real, middle = reward.score, sum(max(-1.0, min(1.0, bound)) for bound in reward.range) / 2

    def score(images: Tensor, prompts: Any, metadata: Any) -> Tensor:
        if picture == "no picture":
            return real(torch.zeros_like(images), prompts, metadata)
        return torch.full((len(images),), middle)

    monkeypatch.setattr(reward, "score", score)
    if reward.name == "geneval":
        assert not case_of(reward.name).varies and len(check_rewards([reward], tmp_path)) == 1
        return
    with pytest.raises(UserError, match=f"reward {reward.name} gives .* it does not look at the picture"):
        check_rewards([reward], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_picture_is_an_error_and_no_score(reward: Reward) -> None:
    case = case_of(reward.name)
    images = case.pictures[:1].clone()
    images[0, 1, 3:9, 3:9] = torch.nan
    with pytest.raises((NonFiniteError, ValueError), match=r"not finite|non-finite"):
        reward.score(images, case.prompts[:1], case.metadata[:1])


def test_identities_are_json_with_hashes_and_version(reward: Reward) -> None:
    found = identities([reward])
    assert list(found) == [reward.name] and json.loads(json.dumps(found)) == found
    about = found[reward.name]
    assert isinstance(about["version"], int) and "name" not in about
    assert bool(about.get("files")) >= bool(REWARDS[reward.name].settings.sources)  # weights are told by their hashes
    assert all(len(digest) == 64 for digest in about.get("files", {}).values())


def test_it_is_what_its_file_says(reward: Reward) -> None:
    settings = REWARDS[reward.name].settings
    assert (reward.differentiable, reward.needs_metadata) == (settings.differentiable, settings.needs_metadata)


def tensors_in(value: Any, seen: set[int]) -> list[Tensor]:
    """Every tensor that an object of this package holds, its modules' included."""
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, nn.Module):
        return [*value.parameters(), *value.buffers()]
    if isinstance(value, dict):
        return [found for item in value.values() for found in tensors_in(item, seen)]
    own = type(value).__module__.startswith("rtdmd.")
    return tensors_in(vars(value), seen) if own and not isinstance(value, type) else []


def test_all_that_it_holds_moves_with_it(tmp_path: Path, reward: Reward) -> None:
    """What stayed behind would keep the device's memory, or fail where it meets what moved."""
    moved = load_reward(entry(reward.name, tmp_path))
    images, prompts, metadata = case_of(reward.name).crossed()
    before = moved.score(images, prompts, metadata)
    moved.to(torch.device("cpu"))
    assert torch.equal(moved.score(images, prompts, metadata), before)
    held = tensors_in(moved, set())
    assert bool(held) == bool(REWARDS[reward.name].settings.sources)
    moved.to(torch.device("meta"))
    assert {tensor.device.type for tensor in tensors_in(moved, set())} <= {"meta"}
