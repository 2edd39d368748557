"""Stage one merged below stage two: the student that it is, what half precision rounds, and which weights are kept."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rtdmd.backbones.protocol import Backbone
from rtdmd.common.files import load_tensors, save_tensors
from rtdmd.config import preset
from rtdmd.train.adapters import ADAPTERS, NEW_FAKE, AdapterBank, load_student, stage_two_stacks
from rtdmd.train.student_record import stands_on_merged, student_header
from tests.train.workshop import adapter, batch, disturb, tiny_backbone
from tests.workspace import set_params

STACKS = ADAPTERS["train_rtdmd"] | {"fake": NEW_FAKE}
NAMES = ("acdmd", "rtdmd", *NEW_FAKE)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def backbone(request: pytest.FixtureRequest, tiny_teacher: Path) -> Backbone:
    return tiny_backbone(tiny_teacher, dtype=request.param)


def open_bank(backbone: Backbone, *merged: str, again: bool = False) -> AdapterBank:
    """Stage two's roles, every adapter away from its start, some merged."""
    made = AdapterBank(copy.deepcopy(backbone), adapter(again=again), STACKS, 0)
    disturb(made, *NAMES)
    for name in merged:
        made.merge(name)
    return made


def relative(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def learned(bank: AdapterBank) -> list[Tensor]:
    """Velocities of all roles, then gradients of two that go forward before either goes back."""
    x, sigma, cond = batch(3)
    own = {"generator": bank.trainable("rtdmd"), "fake": bank.trainable("fake_rtdmd")}
    with torch.no_grad():
        found = [bank.velocity(role, x, sigma, cond) for role in ("teacher", "reference")]
    passes = {role: bank.velocity(role, x, sigma, cond) for role in own}
    bank.velocity("teacher", x, sigma, cond)  # the layers as they were are in place again
    gradients = [torch.autograd.grad(passes[role].square().mean(), own[role]) for role in own]
    return [*found, *passes.values(), *(torch.cat([g.flatten() for g in each]) for each in gradients)]


def test_merged_and_stacked_are_one_student_but_for_rounding(backbone: Backbone) -> None:
    """To the last digits of float32; in bfloat16 the merged weights are rounded, and so is what is learned on them."""
    stacked, merged = learned(open_bank(backbone)), learned(open_bank(backbone, "acdmd", "fake"))
    assert torch.equal(stacked[0], merged[0])  # the teacher
    for one, other in zip(merged[1:], stacked[1:], strict=True):
        off = relative(one, other)
        assert off < 1e-6 if backbone.dtype == torch.float32 else 1e-3 < off < 1e-2


def test_the_copies_are_the_sum_rounded_once_and_the_base_stays(backbone: Backbone) -> None:
    plain, bank = open_bank(backbone), open_bank(backbone, "acdmd")
    copies, above = bank.parts("generator")
    bases, both = plain.parts("generator")
    assert (above, both) == (("rtdmd",), ("acdmd", "rtdmd"))
    for layer, own, base in zip(plain.layers("acdmd"), copies, bases, strict=True):
        exact = base.weight.float() + layer.get_delta_weight("acdmd").float()
        assert torch.equal(own.weight, exact.to(backbone.dtype)) and not torch.equal(own.weight, base.weight)
        assert own.bias is None or torch.equal(own.bias, base.bias)
    teachers, none = bank.parts("teacher")
    assert none == () and all(torch.equal(a.weight, b.weight) for a, b in zip(teachers, bases, strict=True))
    assert not any(p.requires_grad for p in bank.backbone.transformer.parameters())


@pytest.mark.parametrize("merged", [("acdmd",), ("acdmd", "fake")])
def test_recomputed_blocks_find_the_weights_of_their_pass(backbone: Backbone, merged: tuple[str, ...]) -> None:
    plain, again = learned(open_bank(backbone, *merged)), learned(open_bank(backbone, *merged, again=True))
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def linear_numbers(transformer: nn.Module) -> int:
    return sum(p.numel() for key, p in transformer.named_parameters() if ".lora_" not in key)


def test_what_nobody_stands_on_is_not_kept(backbone: Backbone) -> None:
    """All roles of a student on its own base have the adapter merged: there is one copy of each weight."""
    bank = AdapterBank(copy.deepcopy(backbone), adapter(), {"generator": ("acdmd", "rtdmd")}, 0)
    disturb(bank, "acdmd", "rtdmd")
    whole = linear_numbers(bank.backbone.transformer)
    x, sigma, cond = batch(2)
    before = bank.velocity("generator", x, sigma, cond)
    bank.merge("acdmd")
    after = bank.velocity("generator", x, sigma, cond)
    assert linear_numbers(bank.backbone.transformer) == whole
    assert 0 < relative(after, before) < 1e-2
    shared = open_bank(backbone, "acdmd", "fake")
    adapted = sum(layer.weight.numel() + layer.bias.numel() for layer in shared.parts("teacher")[0])
    shared.velocity("teacher", x, sigma, cond)
    assert linear_numbers(shared.backbone.transformer) == whole + 2 * adapted


def test_a_student_is_loaded_as_it_was_trained(
    backbone: Backbone, tiny_teacher: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    """The header says which it was, whatever params.yaml says now."""
    params = set_params(
        tmp_path,
        {
            "model": {"teacher": str(tiny_teacher), "dtype": str(backbone.dtype).removeprefix("torch.")},
            "adapter": {"targets": "attention"},
            "train_rtdmd": {"stage_one_adapters": "merged"},
        },
    )
    now = set_params(tmp_path, {"model": params.model.model_dump(), "adapter": {"targets": "attention"}})
    x, sigma, cond = batch(2)
    for written, names in ((params, ("acdmd",)), (now, ())):
        bank = open_bank(backbone, *names)
        for name in ("acdmd", "rtdmd"):
            path = tmp_path / f"results/train_{name}/generator.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(bank.state(name), path, student_header(f"train_{name}", written))
        assert stands_on_merged(path) == bool(names)
        assert ("stage_one_adapters" in load_tensors(path)[1]) == bool(names)
        student = load_student(now, copy.deepcopy(backbone), "train_rtdmd", tmp_path)
        assert torch.equal(student(x, sigma, cond), bank.velocity("generator", x, sigma, cond))
        first = load_student(now, copy.deepcopy(backbone), "train_acdmd", tmp_path)
        assert torch.equal(first(x, sigma, cond), open_bank(backbone).velocity("reference", x, sigma, cond))


def test_the_header_and_the_stacks_follow_the_settings() -> None:
    world = preset("world")
    assert stage_two_stacks(world) == ADAPTERS["train_rtdmd"]
    assert "stage_one_adapters" not in student_header("train_rtdmd", world)
    new = {"train_rtdmd": {"fake_adapter": "new", "stage_one_adapters": "merged"}}
    lora = preset("world", new)
    full = preset("world", {**new, "adapter": {"mode": "full"}, "publish": {"format": "merged"}})
    assert stage_two_stacks(lora) == STACKS
    assert student_header("train_rtdmd", lora)["stage_one_adapters"] == "merged"
    assert "stage_one_adapters" not in student_header("train_acdmd", lora)
    assert stage_two_stacks(full) == ADAPTERS["train_rtdmd"]  # a copy of its own is merged as it is
    assert "stage_one_adapters" not in student_header("train_rtdmd", full)
