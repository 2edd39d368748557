"""An update that rounding takes away is named from the weights, before anybody waits for the gate."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from rtdmd.config import preset
from rtdmd.train.adapters import AdapterBank
from rtdmd.train.rounding import (
    MIN_MOVE,
    generator_moves,
    report_lost_export,
    report_lost_update,
    surviving_move,
)
from tests.train.workshop import disturb, roles_on, tiny_backbone


@pytest.fixture(scope="module")
def half(tiny_teacher: Path) -> AdapterBank:
    """Stage two's roles on a base in bfloat16; stage one's adapter has moved, stage two's has not."""
    bank = roles_on(tiny_backbone(tiny_teacher, dtype="bfloat16"), "train_rtdmd")
    disturb(bank, "acdmd")
    return bank


def updated(bank: AdapterBank, scale: float) -> AdapterBank:
    """A copy whose stage-two adapter adds ``scale`` times a fixed random update."""
    bank = copy.deepcopy(bank)
    torch.manual_seed(0)
    state = bank.state("rtdmd")
    bank.load("rtdmd", {k: scale * torch.randn_like(v) if "lora_B" in k else v for k, v in state.items()}, "a test")
    return bank


def test_the_move_is_a_ratio_of_norms() -> None:
    """In float32 all of it survives; in bfloat16, whose steps at 3 and 4 are 2^-6 and 2^-5, half a step does not."""
    before = torch.tensor([3.0, 4.0])
    assert surviving_move([(before, before + torch.tensor([0.0, 0.5]))], torch.float32) == pytest.approx(0.1)
    two = [(before, before), (torch.zeros(2), torch.tensor([0.3, 0.4]))]
    assert surviving_move(two, torch.float32) == pytest.approx(0.1)
    assert surviving_move([(before, before + torch.tensor([0.007, 0.015]))], torch.bfloat16) == 0.0
    assert surviving_move([(before, before + torch.tensor([0.009, 0.0]))], torch.bfloat16) == pytest.approx(2**-6 / 5)
    assert surviving_move([(before, before)], torch.float32) == surviving_move([], torch.float32) == 0.0


def test_bfloat16_keeps_a_large_update_and_a_small_one_is_told(half: AdapterBank) -> None:
    """Stage two's own share: stage one's adapter stands on both sides, and its sum is on no grid."""
    large, small = updated(half, 1e-1), updated(half, 1e-6)
    exact = surviving_move(generator_moves(large), torch.float32)
    assert exact > 1e-2
    assert surviving_move(generator_moves(large), torch.bfloat16) == pytest.approx(exact, rel=0.05)
    assert 1e-7 < surviving_move(generator_moves(small), torch.float32) < MIN_MOVE
    assert surviving_move(generator_moves(small), torch.bfloat16) < MIN_MOVE
    assert surviving_move(generator_moves(half), torch.float32) == 0.0


def test_the_move_on_merged_layers_starts_at_them(half: AdapterBank) -> None:
    """Their weights stand on the grid of bfloat16, and with stage two's own share they are the student."""
    merged = copy.deepcopy(half)
    merged.merge("acdmd")
    large = updated(merged, 1e-1)
    copies, above = large.parts("generator")
    assert above == ("rtdmd",)
    for (before, after), own, layer in zip(generator_moves(large), copies, large.layers("rtdmd"), strict=True):
        assert torch.equal(before, own.weight.float()) and torch.equal(before, before.bfloat16().float())
        assert torch.equal(after, before + layer.get_delta_weight("rtdmd").float())


def test_an_update_of_stage_one_below_half_a_step_is_lost(tiny_teacher: Path) -> None:
    """The base stands on the grid: what is below half a step of a weight leaves it where it is."""
    bank = roles_on(tiny_backbone(tiny_teacher, dtype="bfloat16"))
    state = bank.state("acdmd")
    bank.load("acdmd", {k: torch.full_like(v, 1e-5) if "lora_B" in k else v for k, v in state.items()}, "a test")
    exact = surviving_move(generator_moves(bank), torch.float32)
    assert exact > MIN_MOVE > surviving_move(generator_moves(bank), torch.bfloat16)


def test_full_mode_compares_the_copies(tiny_teacher: Path) -> None:
    bank = roles_on(tiny_backbone(tiny_teacher), "train_rtdmd", mode="full")
    assert surviving_move(generator_moves(bank), torch.float32) == 0.0
    own = bank.state("rtdmd")
    bank.load("rtdmd", {name: 1.5 * value for name, value in own.items()}, "a test")
    assert surviving_move(generator_moves(bank), torch.float32) == pytest.approx(0.5)


def test_training_says_that_its_update_is_lost_and_what_to_do(
    half: AdapterBank, capsys: pytest.CaptureFixture[str]
) -> None:
    params = preset("smoke", {"model": {"dtype": "bfloat16"}})
    report_lost_update(params, "train_rtdmd", updated(half, 1e-1))
    assert capsys.readouterr().err == ""
    report_lost_update(params, "train_rtdmd", half)
    assert capsys.readouterr().err == (
        "train_rtdmd: merged and rounded to bfloat16 (model.dtype), the update moves the weights by 0.0e+00 of their"
        " norm: a merged export would be the model before this stage, and publish may refuse it; train longer"
        " (train_rtdmd.epochs) or at a larger rate (train_rtdmd.generator_optimizer.lr, ema_decay)\n"
    )


def test_publish_says_it_before_the_gate(capsys: pytest.CaptureFixture[str]) -> None:
    base = {"a": torch.linspace(0.5, 1.0, 64)}
    far = {"a": (base["a"] * 1.1).bfloat16()}
    base = {"a": base["a"].bfloat16().float()}
    assert report_lost_export(base, far, "bfloat16") == pytest.approx(0.1, rel=0.02)
    assert capsys.readouterr().err == ""
    assert report_lost_export(base, {"a": base["a"].bfloat16()}, "bfloat16") == 0.0
    said = capsys.readouterr().err
    assert said.startswith(
        "publish: rounded to bfloat16 (model.dtype), the merged weights differ from the base model's"
    )
    assert said.endswith("or set publish.format: lora, which is not rounded\n") and said.count("\n") == 1
