"""The moving average against closed forms: of a constant, of a ramp, and with the public code's warm-up."""

from __future__ import annotations

import pytest
import torch

from rtdmd.train.learner import EMA, ema_warmup_decay


def ramp(decay: float, iterations: int, every: int, per_iteration: bool) -> float:
    """How many updates the average lags right after the last one, of a weight that each update moves by 1."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    ema = EMA([weight], decay)
    for iteration in range(1, iterations + 1):
        turn = iteration % every == 0
        weight.data += turn
        if turn or per_iteration:
            ema.update()
    return (weight - ema.tensors[0]).item()


def test_the_average_of_a_ramp_lags_as_published() -> None:
    """Σ (1 - d) d^j times the updates of the last j iterations: d / (1 - d^10), and d / (1 - d) for one an update."""
    assert ramp(0.99, 5_000, 10, per_iteration=True) == pytest.approx(0.99 / (1 - 0.99**10), abs=1e-9)
    assert ramp(0.99, 40_000, 10, per_iteration=False) == pytest.approx(99.0, abs=1e-9)
    assert pytest.approx(10.35, abs=5e-3) == 0.99 / (1 - 0.99**10)
    assert pytest.approx(0.9044, abs=1e-4) == 0.99**10  # what is kept from one generator update to the next


def test_the_warm_up_rises_to_the_decay() -> None:
    assert [ema_warmup_decay(n, 0.9) for n in (0, 7, 15, 79, 80, 87)] == pytest.approx(
        [1 / 10, 8 / 17, 16 / 25, 80 / 89, 0.9, 0.9]
    )
    assert ema_warmup_decay(10**6, 0.9999) == 0.9999


def test_an_update_may_have_a_decay_of_its_own() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    ema = EMA([weight], 0.5)
    weight.data += 1.0
    ema.update(0.25)
    assert ema.tensors[0].item() == 1.75
    ema.update()
    assert ema.tensors[0].item() == 1.875
    once = EMA([weight], 0.5)
    once.tensors[0].zero_()
    thrice = EMA([weight], 0.5)
    thrice.tensors[0].zero_()
    once.update(0.9**3)
    for _ in range(3):
        thrice.update(0.9)
    assert once.tensors[0].item() == pytest.approx(thrice.tensors[0].item(), rel=1e-6)
