"""The loop and the learner: means, resuming in the middle of a row, and stopping at the first non-finite number."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.common.errors import RtdmdError
from rtdmd.common.signals import SIGNALS, Stopped, caught
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.engine import checkpoint
from rtdmd.train.engine.journal import write_curves
from rtdmd.train.engine.loop import Loop
from rtdmd.train.learner import EMA, Gradients, Learner, combine
from tests.train.workshop import adamw

SETTINGS = adamw(0.1)


def weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor([1.0, -2.0]))


def loop_in(folder: Path, total: int, learners: dict[str, Learner] | None = None, save_every: int = 3) -> Loop:
    return Loop(folder, total, save_every, 2, learners or {}, "train_test", "iteration")


def test_a_step_reports_the_norm_before_clipping_and_warms_up() -> None:
    w = weight()
    learner = Learner.adamw([w], SETTINGS, warmup=4)
    rates = []
    for _ in range(6):
        assert learner.step([torch.tensor([3.0, 4.0])]) == pytest.approx(5.0)
        rates.append(learner.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    moved = 1.0 - sum(rates)  # AdamW moves by its rate along a constant gradient
    assert w.tolist() == pytest.approx([moved, moved - 3.0], abs=1e-5)
    assert w.grad is None
    assert learner.optimizer.state[w]["exp_avg"].tolist() == pytest.approx([0.6 * (1 - 0.9**6), 0.8 * (1 - 0.9**6)])


def test_the_rate_falls_to_zero_over_the_last_share_of_the_run() -> None:
    w = weight()
    learner = Learner.adamw([w], SETTINGS, warmup=2, lr_decay=(0.5, 8))
    rates = []
    for _ in range(8):
        learner.step([torch.tensor([3.0, 4.0])])
        rates.append(learner.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_stops_before_it_touches_anything(bad: float) -> None:
    w = weight()
    learner = Learner.adamw([w, weight()], SETTINGS).named("generator", ["a.lora_A", "a.lora_B"])
    with pytest.raises(FloatingPointError) as caught:
        learner.step([torch.ones(2), torch.tensor([bad, 1.0])], "matching")
    where = "first in a.lora_B, 1 of 2 tensors"
    assert str(caught.value) == f"the generator's gradient norm of matching is {bad} ({where})"
    assert w.tolist() == [1.0, -2.0] and learner.updates == 0 and not learner.optimizer.state


def test_a_norm_that_overflows_names_no_tensor() -> None:
    learner = Learner.adamw([weight()], SETTINGS)
    with pytest.raises(FloatingPointError, match=r"^the model's gradient norm is inf \(its square overflows\)$"):
        learner.step([torch.full((2,), 3e38)])


def test_a_term_whose_gradient_is_not_finite_is_named() -> None:
    learner = Learner.adamw([weight()], SETTINGS).named("generator")
    terms = {
        "policy": (1.0, Gradients(learner, [torch.tensor([1.0, float("nan")])])),
        "matching": (1.0, Gradients(learner, [torch.ones(2)])),
    }
    expected = "the generator's gradient norm of policy is nan (first in parameter 0, 1 of 1 tensors)"
    with pytest.raises(FloatingPointError) as caught:
        combine(terms, "unit_norm")
    assert str(caught.value) == expected


def overflowing() -> Learner:
    """A learner without clipping whose gradients' squares overflow AdamW's second moment."""
    w = weight()
    free = adamw(0.1, max_grad_norm=1e30, betas=(0.9, 0.5))
    return Learner.adamw([w], free, ema=EMA([w], 0.9)).named("generator", ["a.lora_A"])


def moments(learner: Learner, step: int) -> None:
    """Gradients whose norm is finite and whose square is not, as nothing in a loss shows."""
    learner.step([torch.tensor([1e19 if step < 4 else 1.8e19, 0.0])])
    for group in learner.optimizer.state.values():
        if step >= 4:
            group["exp_avg_sq"] *= 4  # the next ones of a run that diverges


def ema(learner: Learner, step: int) -> None:
    """An average that overflows while weights and losses are finite."""
    assert learner.ema is not None
    if step == 4:
        learner.ema.tensors[0][1] = 3e38
    learner.ema.tensors[0].mul_(2.0)


@pytest.mark.parametrize(
    ("grow", "what"),
    [(moments, "AdamW exp_avg_sq of a.lora_A has 1"), (ema, "EMA of a.lora_A has 1")],
)
def test_what_overflows_beside_the_losses_is_not_kept(
    tmp_path: Path, grow: Callable[[Learner, int], None], what: str
) -> None:
    learner = overflowing()
    loop = loop_in(tmp_path, 9, {"generator": learner})
    with pytest.raises(RtdmdError) as caught:
        for step in loop:
            grow(learner, step)
            loop.log(step, {"loss": 1.0})
    assert str(caught.value) == (
        f"train_test stopped at iteration 5: the generator's {what} non-finite values of 2; the last good checkpoint is"
        f" iteration 3 in {tmp_path}"
    )
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 3
    assert all(torch.isfinite(tensor).all() for group in found.tensors.values() for tensor in group.values())


def test_a_parameter_that_the_loss_does_not_reach_is_an_error() -> None:
    w, idle = weight(), weight()
    gradients = Gradients(Learner.adamw([w], SETTINGS))
    gradients.add(w.square().sum())
    gradients.add(w.square().sum())
    assert gradients.total is not None and gradients.total[0].tolist() == [4.0, -8.0]
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        Gradients(Learner.adamw([w, idle], SETTINGS)).add(w.square().sum())


def test_a_learner_put_back_goes_on_alike() -> None:
    def learner() -> Learner:
        w = weight()
        return Learner.adamw([w], SETTINGS, warmup=10, ema=EMA([w], 0.9))

    def advance(one: Learner, steps: range) -> None:
        for i in steps:
            one.step([torch.tensor([1.0, float(i)])])
            assert one.ema is not None
            one.ema.update()

    whole, half, rest = learner(), learner(), learner()
    advance(whole, range(6))
    advance(half, range(3))
    rest.restore("generator", half.tensors("generator"))
    advance(rest, range(3, 6))
    theirs, mine = whole.tensors("generator"), rest.tensors("generator")
    assert set(mine) == {f"generator_{name}" for name in ("parameters", "optimizer", "updates", "ema")}
    for name, group in theirs.items():
        assert group.keys() == mine[name].keys()
        assert all(torch.equal(mine[name][key], value) for key, value in group.items()), name


def test_rows_are_means_over_log_every_steps_and_over_what_was_there(tmp_path: Path) -> None:
    loop = loop_in(tmp_path, 5)
    for step in loop:
        loop.log(step, {"loss": float(step)} | ({"turn": 10.0 * step} if step % 2 else {}))
    assert loop.rows == [
        {"iteration": 2, "loss": 0.5, "turn": 10.0},
        {"iteration": 4, "loss": 2.5, "turn": 30.0},
        {"iteration": 5, "loss": 4.0},
    ]


def test_the_curve_goes_on_in_the_middle_of_a_row(tmp_path: Path) -> None:
    """Saved after 3 of 8 steps with a row under way, and with names whose order is not the alphabet's."""

    def values(step: int) -> dict[str, float]:
        return {"zeta": 1 / (step + 3), "alpha": step / 7} | ({"mid": 0.1 * step} if step % 2 else {})

    whole, half = loop_in(tmp_path / "whole", 8), loop_in(tmp_path / "half", 8)
    for step in whole:
        whole.log(step, values(step))
    with pytest.raises(KeyboardInterrupt):
        for step in half:
            if step == 4:
                raise KeyboardInterrupt
            half.log(step, values(step))
    again = loop_in(tmp_path / "half", 8)
    seen = []
    for step in again:
        seen.append(step)
        again.log(step, values(step))
    assert seen == [3, 4, 5, 6, 7]
    for name, rows in (("whole.csv", whole.rows), ("again.csv", again.rows)):
        write_curves(rows, tmp_path / name)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / "whole.csv").read_text().startswith("iteration,zeta,alpha,mid\n2,0.29166667,")


def test_a_finished_loop_has_nothing_left_to_do(tmp_path: Path) -> None:
    for expected in ([0, 1, 2, 3], []):
        loop = loop_in(tmp_path, 4)
        seen = []
        for step in loop:
            seen.append(step)
            loop.log(step, {"loss": 1.0})
        assert seen == expected
        assert loop.rows == [{"iteration": 2, "loss": 1.0}, {"iteration": 4, "loss": 1.0}]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_value_names_itself_the_step_and_the_checkpoint(tmp_path: Path, bad: float) -> None:
    w = weight()
    loop = loop_in(tmp_path, 9, {"generator": Learner.adamw([w], SETTINGS)})
    with pytest.raises(RtdmdError) as caught:
        for step in loop:
            try:
                loop.log(step, {"loss": 1.0, "gap": bad if step == 7 else 0.0})
            except FloatingPointError as error:
                raise loop.fault(step, error) from error
    text = str(caught.value)
    assert text == (
        f"train_test stopped at iteration 7: gap is {bad}; the last good checkpoint is iteration 6 in {tmp_path}"
    )
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 6


def test_a_fault_before_the_first_checkpoint_says_so(tmp_path: Path) -> None:
    fault = loop_in(tmp_path, 9).fault(0, FloatingPointError("x is nan"))
    assert str(fault) == "train_test stopped at iteration 0: x is nan; no checkpoint"


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_lets_the_step_finish_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """In the middle of step 4 of 9, between two checkpoints; what reads standard error died of the signal too."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    w, former = weight(), {one: signal.getsignal(one) for one in SIGNALS}
    loop = loop_in(tmp_path, 9, {"generator": Learner.adamw([w], SETTINGS)})
    seen = []
    try:
        with pytest.raises(Stopped) as caught_stop, caught():
            for step in loop:
                seen.append(step)
                if step == 4:
                    os.kill(os.getpid(), number)
                    terminal.broken = True
                loop.log(step, {"loss": float(step)})
    finally:
        for one, handler in former.items():
            signal.signal(one, handler)
    assert str(caught_stop.value) == f"stopped by {number.name} after iteration 5 of 9, which is saved"
    assert seen == [0, 1, 2, 3, 4]
    assert terminal.refused > 0
    found = checkpoint.load(tmp_path)
    assert found is not None and found.step == 5
    assert [json.loads(line)["loss"] for line in found.journal.splitlines()] == [0.0, 1.0, 2.0, 3.0, 4.0]


class Terminal(io.StringIO):
    """Standard error, whose reader may end."""

    broken, refused = False, 0

    def write(self, text: str) -> int:
        if self.broken:
            self.refused += 1
            raise BrokenPipeError
        return super().write(text)


def test_the_journal_holds_every_step_once_after_a_kill(tmp_path: Path) -> None:
    """Steps 3 and 4 were written, not saved, and half a line besides: they come again, once."""
    loop = loop_in(tmp_path, 8)
    with pytest.raises(KeyboardInterrupt):
        for step in loop:
            if step == 5:
                with loop.journal.path.open("a") as file:
                    file.write('{"iteration": 6, "lo')
                raise KeyboardInterrupt
            loop.log(step, {"loss": step / 4, "latent/mean": 1.0})
    assert len(loop.journal.path.read_text().splitlines()) == 6
    again = loop_in(tmp_path, 8)
    for step in again:
        if step == 3:
            assert len(again.journal.path.read_text().splitlines()) == 3
        again.log(step, {"loss": step / 4, "latent/mean": 1.0})
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["loss"] for line in lines] == [step / 4 for step in range(8)]
    machine = {"machine/seconds", "machine/peak_memory_mib"}
    assert all(set(line) == {"iteration", "loss", "latent/mean"} | machine for line in lines)
    assert all(line["machine/seconds"] > 0 and 10 < line["machine/peak_memory_mib"] < 1e5 for line in lines)
    assert again.rows == [{"iteration": n, "loss": (2 * n - 3) / 8} for n in (2, 4, 6, 8)]


def test_curves_have_the_union_of_columns_and_eight_digits(tmp_path: Path) -> None:
    write_curves([{"epoch": 1, "a": 1 / 3}, {"epoch": 20, "a": 1e-12, "b": -2.0}], tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text() == "epoch,a,b\n1,0.33333333,\n20,1e-12,-2\n"


def test_a_checkpoint_that_one_process_sees_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process is at step 6 while this one still sees step 3."""
    for step in (3, 6):
        checkpoint.save(tmp_path, checkpoint.Snapshot(step, {}, ""))
    hidden = tmp_path / "step-00000006"
    hidden.rename(tmp_path / "on its way")
    waits: list[float] = []

    def appear(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            (tmp_path / "on its way").rename(hidden)

    monkeypatch.setattr("rtdmd.train.engine.loop.time.sleep", appear)
    loop = loop_in(tmp_path, 9)
    loop.ranks = Second(rank=1, world=2)
    found = loop._load()
    assert found is not None
    assert (found.step, waits) == (6, [1, 1, 1])


class Second(Ranks):
    """The second of two processes, of which the first is at step 6."""

    def all_gather_object(self, value: Any) -> list[Any]:
        return [6, value]
