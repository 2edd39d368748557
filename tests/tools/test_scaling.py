"""`python -m tools.scaling`: what processes send in an update beside the ideal of rings, and the table's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed.fsdp  # noqa: F401  before the processes are forked

from rtdmd.common.errors import UserError
from rtdmd.config import preset
from tests.plan.test_counts import small
from tools.bench import PROMPTS
from tools.scaling import Measured, in_processes, row, scaling, spreads


def test_two_processes_send_little_more_than_rings_would(tiny_teacher: Path, tiny_clip: Path) -> None:
    """Sums of gradients and gathers of blocks; beside them go only figures and who gathers what, some 10 kB."""
    keys: dict[str, Any] = {"processes": 2, "sharding": "base"}
    found = in_processes(small(tiny_teacher, tiny_clip, {"train_acdmd": keys}), "train_acdmd", repeats=1)
    assert [one.ideal for one in found] == [found[0].ideal] * 2
    for one in found:
        assert one.ideal < one.sent < one.ideal + 100_000
        assert 0 < one.collectives < one.clock


def test_a_base_is_held_in_one_two_or_three_ways() -> None:
    assert [(keys["sharding"], keys["shard_group"]) for count in (1, 2, 4) for keys in spreads(count)] == [
        ("none", None),
        *(("none", None), ("base", None)),
        *(("none", None), ("base", None), ("hybrid", 2)),
    ]


def test_a_row_has_the_slowest_clock_all_processors_and_means_of_the_rest() -> None:
    found = [
        Measured(clock=2.0, cpu=1.0, collectives=1.0, sent=3e6, ideal=2e6),
        Measured(clock=4.0, cpu=2.0, collectives=1.0, sent=5e6, ideal=2e6),
    ]
    keys = {"sharding": "hybrid", "shard_group": 2}
    figures = ["4.00", "3.00", "38 %", "4.0", "2.0", "2.000"]
    assert row("train_acdmd", keys, found) == ["train_acdmd", "2", "hybrid, groups of 2", *figures]
    alone = [Measured(clock=2.0, cpu=1.5, collectives=0.0, sent=0.0, ideal=0.0)]
    assert row("train_acdmd", {"sharding": "none", "shard_group": None}, alone)[-1] == ""


def test_what_cannot_be_shared_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = preset("smoke")
    with pytest.raises(
        UserError, match=r"^results/prepare_prompts/train\.jsonl: no such file; `rtdmd prepare_prompts`"
    ):
        next(scaling(params, [1], repeats=1))
    PROMPTS.parent.mkdir(parents=True)
    PROMPTS.touch()
    with pytest.raises(UserError, match=r"^--processes 5: train_acdmd.*allowed: 1 to batch_size = 4"):
        next(scaling(params, [5], repeats=1))
