"""A rollout lies on the host, and a micro-batch comes to the device: here torch's meta device, without memory."""

from __future__ import annotations

import pytest
import torch

from rtdmd.backbones.protocol import Conditioning
from rtdmd.train.rollout import CPU, ImageConditioning, Rollout, pinned_cat, to_device

META = torch.device("meta")
WORDS = torch.arange(12.0).view(3, 2, 2)


def texts(device: torch.device) -> ImageConditioning:
    """Of six images, two for each of three prompts."""
    return ImageConditioning.of_groups(Conditioning({"words": WORDS}), 6, device)


def test_each_image_has_its_prompts_text() -> None:
    every = WORDS.repeat_interleave(2, 0)
    own = texts(CPU)
    assert len(own.prompts) == 3
    for rows in (slice(0, 6), slice(1, 4), slice(0, None, 2), [5, 0, 1, 0]):
        assert torch.equal(own.index(rows).tensors["words"], every[rows])
        assert torch.equal(own.take(rows).index(slice(None)).tensors["words"], every[rows])
    each = ImageConditioning.of_groups(Conditioning({"words": every}), 6, CPU)
    assert torch.equal(each.index([4, 1]).tensors["words"], every[[4, 1]])
    with pytest.raises(ValueError, match="5 images are not the groups of 3 texts"):
        ImageConditioning.of_groups(Conditioning({"words": WORDS}), 5, CPU)


def test_a_prompts_text_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four images of two prompts two rows go to the device."""
    moved = list[int]()
    to = Conditioning.to

    def noted(self: Conditioning, device: torch.device) -> Conditioning:
        moved.append(len(self))
        return to(self, device)

    own = texts(META)
    monkeypatch.setattr(Conditioning, "to", noted)
    there = own.index([0, 1, 4, 5]).tensors["words"]
    assert there.device == META and there.shape == (4, 2, 2) and moved == [2]
    assert own.prompts.tensors["words"].device == CPU


def test_only_what_is_asked_for_comes_to_the_device() -> None:
    states = [torch.full((6, 1, 2, 2), float(k)) for k in range(3)]
    means = [torch.full((6, 1, 2, 2), 10.0)]
    sigmas = torch.empty(3, device=META)
    records = [{"prompt": str(i)} for i in range(6)]
    groups = torch.arange(6) // 2
    rollout = Rollout(states, means, [torch.ones(6)], sigmas, texts(META), records, groups, (False, False), 0.9)
    few = rollout.take([4, 1])
    for part, of in ((rollout.state(1, slice(0, 2)), 2), (rollout.mean(0, [3, 1, 0]), 3), (few.state(-1, [0]), 1)):
        assert part.device == META and part.shape == (of, 1, 2, 2)
    held = [*rollout.states, *rollout.means, *rollout.stds, *few.states, *few.means]
    assert {tensor.device for tensor in held} == {CPU}
    assert few.groups.tolist() == [2, 0] and [one["prompt"] for one in few.records] == ["4", "1"]
    assert few.cond.of == [2, 0]


def test_on_the_cpu_nothing_is_copied() -> None:
    whole = pinned_cat([torch.zeros(3, 2), torch.ones(1, 2)], CPU)
    assert to_device(whole[1:3], CPU).data_ptr() == whole[1:3].data_ptr() and not whole.is_pinned()
