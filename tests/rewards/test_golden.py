"""The golden check: it records, it agrees with itself, and each kind of silent failure stops it with a diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdmd.common.errors import NonFiniteError, UserError
from rtdmd.common.files import read_json, write_json
from rtdmd.config import preset, reward_params
from rtdmd.rewards.geneval_rules import parse
from rtdmd.rewards.golden import COMMITTED, MIN_SPREAD, TOLERANCE, check_rewards, measure, record_rewards
from rtdmd.rewards.golden_cases import case_of
from rtdmd.rewards.protocol import Metadata, Reward, checked
from rtdmd.rewards.registry import load_reward


class Toy:
    """A scorer that is one function of the images."""

    name = "toy"
    needs_metadata = False

    def __init__(self, what: Callable[[Tensor], Tensor], differentiable: bool = False, weights: str = "a"):
        self.what, self.differentiable, self.weights = what, differentiable, weights
        self.range = (0.0, 1.0)

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "weights": self.weights}

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        return checked(self.name, self.what(images))


def brightness(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


def test_the_first_run_records_and_the_next_agrees(tmp_path: Path, tiny_clip: Path) -> None:
    reward = load_reward(reward_params(name="clipscore", model=str(tiny_clip)))
    (path,) = check_rewards([reward], tmp_path)
    assert path.parent == tmp_path / ".rtdmd" / "golden" and path.name.startswith("clipscore-")
    assert read_json(path)["scores"] == list(measure(reward).scores)
    assert len(read_json(path)["scores"]) == 8
    before = path.read_bytes()
    assert check_rewards([reward], tmp_path) == []
    assert path.read_bytes() == before


def test_a_mismatch_stops_and_says_what_changed(tmp_path: Path) -> None:
    (path,) = check_rewards([Toy(brightness)], tmp_path)
    spread = max(read_json(path)["scores"]) - min(read_json(path)["scores"])
    assert spread > MIN_SPREAD
    assert check_rewards([Toy(lambda x: brightness(x) + 0.5 * TOLERANCE * spread)], tmp_path) == []
    with pytest.raises(UserError, match=r"reward toy gives .* at drawn image \d where .*toy-.* says .*nothing known"):
        check_rewards([Toy(lambda x: brightness(x) + 2 * TOLERANCE * spread)], tmp_path)
    record = read_json(path)
    write_json(path, record | {"about": record["about"] | {"torch": "1.0"}})
    with pytest.raises(UserError, match=r"Changed since: torch 1\.0 -> .*`rtdmd rewards record`"):
        check_rewards([Toy(lambda x: 1 - brightness(x))], tmp_path)
    record_rewards([Toy(lambda x: 1 - brightness(x))], tmp_path)
    assert check_rewards([Toy(lambda x: 1 - brightness(x))], tmp_path) == []


def test_other_weights_have_a_record_of_their_own(tmp_path: Path) -> None:
    (one,) = check_rewards([Toy(brightness)], tmp_path)
    (two,) = check_rewards([Toy(lambda x: 1 - brightness(x), weights="b")], tmp_path)
    assert one != two


@pytest.mark.parametrize(
    ("what", "differentiable", "message"),
    [
        (lambda x: x.new_full((len(x),), 0.5), False, r"gives 0\.5 to all of 'a red circle', .*does not look at"),
        (lambda x: 3 * brightness(x), False, r"outside its range 0\.0 to 1\.0"),
        (lambda x: brightness(x)[:1], False, r"gave scores \(1,\) for 8 images"),
        (lambda x: brightness(x) * float("nan"), False, "not finite, at image 0"),
        (lambda x: brightness(x.round()), True, "its gradient is zero"),
    ],
)
def test_silent_failures_stop_and_leave_no_record(
    tmp_path: Path, what: Callable[[Tensor], Tensor], differentiable: bool, message: str
) -> None:
    scorer = Toy(what, differentiable)
    for act in (check_rewards, record_rewards):
        with pytest.raises((UserError, NonFiniteError), match=message):
            act([scorer], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_is_not_a_score(tmp_path: Path) -> None:
    def broken(images: Tensor) -> Tensor:
        raise KeyError("weights")

    with pytest.raises(KeyError):
        check_rewards([Toy(broken)], tmp_path)


def world_rewards() -> list[Reward]:
    """Every scorer that the committed presets name."""
    params = preset("world")
    return [load_reward(entry) for entry in (*params.train_rtdmd.rewards, *params.evaluate.rewards)]


def test_the_worlds_scorers_agree_with_the_committed_records(tmp_path: Path) -> None:
    rewards = world_rewards()
    committed = read_json(COMMITTED)
    assert {measure(reward).key for reward in rewards} <= committed.keys()
    assert check_rewards(rewards, tmp_path) == []
    assert list(tmp_path.iterdir()) == []  # nothing to record


def test_the_strict_verdict_is_right_on_the_drawn_scenes() -> None:
    strict = load_reward(reward_params(name="world_verifier", soft_weight=0.0))
    assert measure(strict).scores == (1, 0, 0, 0, 0, 1, 0, 0)


def test_an_own_record_goes_before_the_committed_one(tmp_path: Path) -> None:
    (reward, *_) = world_rewards()
    (path,) = record_rewards([reward], tmp_path)
    record = read_json(path)
    write_json(path, record | {"scores": [score + 0.1 for score in record["scores"]]})
    with pytest.raises(UserError, match="reward clipscore gives"):
        check_rewards([reward], tmp_path)


def test_cases_are_pictures_in_range_that_differ() -> None:
    for name in ("clipscore", "ocr", "geneval", "geneval2"):
        case = case_of(name)
        images, prompts, metadata = case.crossed()
        assert len(images) == len(prompts) == len(metadata) == 8
        assert images.min() >= 0 and images.max() <= 1 and images.dtype == torch.float32
        assert len({picture.numpy().tobytes() for picture in case.pictures}) == len(case.seen) == 4
        assert prompts[:4] == [case.prompts[0]] * 4 and torch.equal(images[:4], images[4:])
        assert case.digest() == case_of(name).digest()
    assert len({case_of(name).digest() for name in ("clipscore", "ocr", "geneval", "geneval2")}) == 4


def test_the_case_of_geneval_is_what_it_reads() -> None:
    case = case_of("geneval")
    for prompt, record in zip(case.prompts, case.metadata, strict=True):
        assert record is not None and parse(record, prompt).include[0].name in prompt


def test_one_file_of_many_records_keeps_the_others(tmp_path: Path) -> None:
    file = tmp_path / "golden.json"
    assert record_rewards([Toy(brightness)], file=file) == [file]
    record_rewards([Toy(brightness, weights="b")], file=file)
    assert [record["name"] for record in read_json(file).values()] == ["toy", "toy"]
