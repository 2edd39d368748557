"""Counter-based randomness: a key names its numbers, whatever the batch, the order or the moment."""

from __future__ import annotations

import pytest
import torch

from rtdmd.common.rng import (
    epoch_order,
    integers,
    key_seed,
    normal,
    normal_batch,
    numpy_generator,
    permutation,
)


def test_keys_differ_by_value_type_order_and_length() -> None:
    keys = [(0,), (1,), ("1",), (1, 1), (11,), ("1", 1), (1, "1"), ("a", "b"), ("ab",), ("b", "a"), (), ("",)]
    seeds = [key_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_numbers_of_a_key_never_change() -> None:
    """A change here changes every result of every run: these figures are the contract."""
    assert key_seed(0, "acdmd", 7) == 5144002902174645308
    assert permutation(6, 1, "order") == [3, 5, 0, 1, 4, 2]
    assert normal((3,), 0, "noise").tolist() == pytest.approx([-0.1051842, -2.0724702, 0.8594424], abs=1e-6)


def test_the_same_key_gives_the_same_numbers_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(normal((2, 3), 5, "x"), normal((2, 3), 5, "x"))
    assert not torch.equal(normal((2, 3), 5, "x"), normal((2, 3), 6, "x"))
    assert numpy_generator(5, "x").integers(2**40) == numpy_generator(5, "x").integers(2**40)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_row_depends_on_its_key_alone() -> None:
    keys = [(0, "sample", i) for i in range(6)]
    whole = normal_batch((2, 3, 3), keys)
    assert torch.equal(whole, torch.cat([normal_batch((2, 3, 3), keys[:1]), normal_batch((2, 3, 3), keys[1:])]))
    assert torch.equal(whole.flip(0), normal_batch((2, 3, 3), keys[::-1]))
    assert torch.equal(whole[4], normal((2, 3, 3), *keys[4]))


def test_normals_and_integers_have_their_law() -> None:
    noise = normal_batch((1000,), [(0, i) for i in range(100)])
    assert noise.dtype == torch.float32
    assert noise.mean().item() == pytest.approx(0.0, abs=0.013)  # 4 standard errors
    assert noise.std().item() == pytest.approx(1.0, abs=0.009)
    counts = torch.bincount(torch.tensor([integers(2, 6, 0, "k", i) for i in range(4000)]))
    assert counts[:2].tolist() == [0, 0] and len(counts) == 6
    assert counts[2:].min() > 880 and counts[2:].max() < 1120  # 4 standard errors of 1000


def test_an_epoch_is_a_permutation_and_windows_concatenate() -> None:
    stream = epoch_order(7, 0, 28, 0, "prompts")
    epochs = [stream[i : i + 7] for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    for size in (1, 3, 4, 10):
        windows = [epoch_order(7, first, min(size, 28 - first), 0, "prompts") for first in range(0, 28, size)]
        assert [item for window in windows for item in window] == stream
    assert epoch_order(7, 5, 0, 0, "prompts") == []
    assert epoch_order(7, 0, 28, 1, "prompts") != stream
