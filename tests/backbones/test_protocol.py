"""Conditioning: the small algebra on its rows."""

from __future__ import annotations

import pytest
import torch

from rtdmd.backbones import Conditioning


def rows(n: int) -> Conditioning:
    return Conditioning({"a": torch.arange(n), "b": 10.0 * torch.arange(n)[:, None].expand(n, 3)})


def test_rows_stay_together() -> None:
    cond = rows(4)
    assert len(cond) == 4
    picked = cond.index(torch.tensor([2, 0]))
    assert picked.tensors["a"].tolist() == [2, 0] and picked.tensors["b"][:, 0].tolist() == [20.0, 0.0]
    assert cond.index(slice(1, 3)).tensors["a"].tolist() == [1, 2]
    assert rows(2).repeat_interleave(2).tensors["a"].tolist() == [0, 0, 1, 1]
    assert Conditioning.cat([rows(2), rows(1)]).tensors["a"].tolist() == [0, 1, 0]
    assert cond.to(dtype=torch.float64).tensors["b"].dtype == torch.float64


def test_expand_repeats_one_row_only() -> None:
    assert rows(1).expand(3).tensors["b"].shape == (3, 3)
    assert len(rows(3).expand(3)) == 3
    with pytest.raises(ValueError, match="2 rows to 3"):
        rows(2).expand(3)


def test_tensors_must_share_their_batch() -> None:
    with pytest.raises(ValueError, match="share their batch size"):
        Conditioning({"a": torch.zeros(2), "b": torch.zeros(3)})
