"""A training run's scorers: same numbers in threads, errors that arrive, and weights on the device while they score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.config import RewardParams, reward_params
from rtdmd.rewards import reward_models as module
from rtdmd.rewards.protocol import Metadata
from rtdmd.rewards.reward_models import CPU, Batch, RewardModels, has_thread, load_rewards

CUDA = torch.device("cuda")
WAIT = 60  # seconds after which a thread that never ran is a failure, not a hang


class Toy:
    """Brightness; notes where it is told to go and what it is told to score."""

    differentiable, needs_metadata, range = False, False, (0.0, 1.0)

    def __init__(self, name: str = "toy"):
        self.name, self.log, self.threads = name, list[str](), set[Any]()

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def note(self, line: str) -> None:
        self.log.append(line)

    def to(self, device: torch.device) -> None:
        self.note(device.type)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        self.note(f"{len(images)} images")
        self.threads.add(current_thread())
        assert not torch.is_grad_enabled()
        return images.mean((1, 2, 3))


def batches(count: int = 3) -> Iterator[Batch]:
    for seed in range(count):
        images = torch.rand(seed + 1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
        yield images, ["a"] * (seed + 1), [None] * (seed + 1)


def test_threads_move_no_number_and_keep_the_order() -> None:
    here, threaded = Toy("here"), Toy("beside")
    with RewardModels({"here": here, "beside": threaded}, CPU, threaded=frozenset({"beside"})).scoring(
        batches()
    ) as scoring:
        scores = scoring.scores(CPU)
    assert list(scores) == ["here", "beside"] and scores["here"].shape == (6,)
    assert torch.equal(scores["here"], scores["beside"])
    assert torch.equal(scores["here"], torch.cat([images.mean((1, 2, 3)) for images, *_ in batches()]))
    assert here.threads == {main_thread()} and len(threaded.threads) == 1 and main_thread() not in threaded.threads
    assert here.log == threaded.log == ["1 images", "2 images", "3 images"]


def test_the_run_goes_on_while_a_thread_scores() -> None:
    """The scorer waits for what the run does only after all batches were handed over, inside the ``with``."""
    went_on = Event()

    class Slow(Toy):
        def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
            assert went_on.wait(WAIT)
            return super().score(images, prompts, metadata)

    with RewardModels({"slow": Slow()}, CPU, threaded=frozenset({"slow"})).scoring(batches()) as scoring:
        went_on.set()
        assert scoring.scores(CPU)["slow"].shape == (6,)


def test_only_so_many_batches_wait_for_a_thread() -> None:
    """With two ahead, the fifth batch is made once the third is scored: images do not pile up."""
    made, toy = list[int](), Toy()

    def noted() -> Iterator[Batch]:
        for number, batch in enumerate(batches(6)):
            assert len(toy.log) >= number - 2
            made.append(number)
            yield batch

    with RewardModels({"toy": toy}, CPU, threaded=frozenset({"toy"})).scoring(noted(), ahead=2) as scoring:
        scores = scoring.scores(CPU)["toy"]
    assert made == list(range(6)) and len(scores) == 21


def test_what_a_thread_raises_is_raised_in_the_run() -> None:
    class Broken(Toy):
        def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
            raise UserError("reward toy: no such word")

    asked = RewardModels({"toy": Broken()}, CPU, threaded=frozenset({"toy"}))
    with pytest.raises(UserError, match="no such word"), asked.scoring(batches()) as scoring:
        scoring.scores(CPU)


def test_an_error_of_the_run_does_not_wait_for_all_scores() -> None:
    """What a thread has not begun is dropped."""
    begun, ended = Event(), Event()

    class Slow(Toy):
        def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
            begun.set()
            assert ended.wait(WAIT)
            return super().score(images, prompts, metadata)

    slow = Slow()
    asked = RewardModels({"slow": slow}, CPU, threaded=frozenset({"slow"}))

    def ends() -> None:
        with asked.scoring(batches(20)):
            assert begun.wait(WAIT)
            ended.set()
            raise FloatingPointError("not finite")

    with pytest.raises(FloatingPointError):
        ends()
    assert len(slow.log) < 20


def test_offloaded_weights_are_on_the_device_while_they_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, each for all images that waited on the host, and for no others."""
    stays, one, other = Toy("stays"), Toy("one"), Toy("other")
    log = list[str]()

    def note(toy: Toy, line: str) -> None:
        log.append(f"{toy.name}: {line}")

    for toy in (stays, one, other):
        toy.note = partial(note, toy)  # type: ignore[method-assign]
    rewards = {toy.name: toy for toy in (stays, one, other)}
    asked = RewardModels(rewards, CUDA, frozenset({"one", "other"}))
    two_batches = 4 * 3 * 4 * 4 * (1 + 2)
    monkeypatch.setattr(module, "MAX_WAITING", two_batches)
    with asked.scoring(batches(3)) as scoring:
        scores = scoring.scores(CPU)
    turns = [f"{name}: {what}" for name in ("one", "other") for what in ("cuda", "1 images", "2 images", "cpu")]
    rest = [f"{name}: {what}" for name in ("one", "other") for what in ("cuda", "3 images", "cpu")]
    assert log == ["stays: 1 images", "stays: 2 images", *turns, "stays: 3 images", *rest]
    assert torch.equal(scores["one"], scores["stays"]) and torch.equal(scores["other"], scores["stays"])
    assert list(scores) == ["stays", "one", "other"]


def test_weights_that_find_no_room_are_back_on_the_host() -> None:
    class Stuck(Toy):
        def to(self, device: torch.device) -> None:
            super().to(device)
            if device == CUDA:
                raise MemoryError("no room")

    toy = Stuck()
    with (
        pytest.raises(MemoryError, match="no room"),
        RewardModels({"toy": toy}, CUDA, frozenset({"toy"})).scoring(batches()),
    ):
        pass
    assert toy.log == ["cuda", "cpu"]


@pytest.mark.parametrize("offloaded", [frozenset(), frozenset({"one", "two"})])
def test_gradients_of_a_weighted_sum(offloaded: frozenset[str]) -> None:
    """Of r = mean(x) and mean(x)^2, weighted 2 and -3: the values and gradients of a closed form, scorer by scorer."""

    class Smooth(Toy):
        def __init__(self, power: int) -> None:
            super().__init__(f"power {power}")
            self.power = power

        def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
            self.note(f"{len(images)} images")
            return images.mean((1, 2, 3)) ** self.power

    one, two = Smooth(1), Smooth(2)
    asked = RewardModels({"one": one, "two": two, "unasked": Toy()}, CUDA, offloaded)
    given = list(batches(2))
    found = asked.gradients(given, {"one": 2.0, "two": -3.0})
    for (images, *_), (value, gradient) in zip(given, found, strict=True):
        mean = images.mean((1, 2, 3))
        assert torch.allclose(value, 2 * mean - 3 * mean**2) and not value.requires_grad
        expected = ((2 - 6 * mean) / images[0].numel())[:, None, None, None].expand_as(images)
        assert torch.allclose(gradient, expected)
    moves = ["cuda", "1 images", "2 images", "cpu"] if offloaded else ["1 images", "2 images"]
    assert one.log == two.log == moves


def test_who_has_a_thread() -> None:
    clip = reward_params(name="clipscore", model="./a", socket="s")
    assert not has_thread(clip, CUDA)  # the run waits for its gradient anyway
    ocr, remote = reward_params(name="ocr"), reward_params(name="ocr", socket="s")
    assert [has_thread(spec, device) for spec in (ocr, remote) for device in (CPU, CUDA)] == [False, True, True, True]
    hpsv3 = reward_params(name="hpsv3", model="./a", base="./b", offload=True)
    assert not has_thread(hpsv3, CUDA)  # it has a turn of its own


def test_a_panel_is_loaded_one_by_one_and_tried(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    real_load, real_check = module.load_reward, module.check_rewards

    def load(spec: RewardParams, device: torch.device, root: Path) -> Any:
        happened.append(f"load {spec.name}")
        reward = real_load(spec, device, root)
        monkeypatch.setattr(reward, "to", lambda device: happened.append(f"{spec.name} to {device}"))
        return reward

    def check(rewards: list[Any], root: Path) -> list[Path]:
        happened.append(f"check {rewards[0].name}")
        return real_check(rewards, root)

    monkeypatch.setattr(module, "load_reward", load)
    monkeypatch.setattr(module, "check_rewards", check)
    clip = reward_params(name="clipscore", model=str(tiny_clip), offload=True)
    found = load_rewards([clip, reward_params(name="world_verifier", soft_weight=0.5)], CPU, tmp_path)
    assert list(found.rewards) == ["clipscore", "world_verifier"]
    assert found.offloaded == {"clipscore"} and found.threaded == frozenset()
    loaded = ["load clipscore", "check clipscore", "clipscore to cpu"]
    assert happened == [*loaded, "load world_verifier", "check world_verifier"]
