"""Which settings are proposed where a stage does not fit: what saves memory and is not set already, until it fits."""

from __future__ import annotations

from typing import Any

import pytest

from rtdmd.config import Params, preset
from rtdmd.plan.fits import fit
from rtdmd.plan.memory import Memory

CLIP = {"name": "clipscore", "model": "./clip", "weight": 1.0}
VERIFIER = {"name": "world_verifier", "soft_weight": 0.5}


def settings(**second: Any) -> Params:
    own = {"rewards": [CLIP, VERIFIER], "micro_batch": 8, "watch": {"every": 0}}
    return preset("smoke", {"adapter": {"gradient_checkpointing": True}, "train_rtdmd": own | second})


def measure(params: Params) -> Memory:
    """40 bytes for a scorer that stays, 10 for a row of a pass, and 3."""
    p = params.train_rtdmd
    staying = sum(bool(reward.sources) and not reward.offload for reward in p.rewards)
    return Memory({"rewards": 40.0 * staying, "rest": 3.0}, {"policy": {"activations": 10.0 * p.micro_batch}})


@pytest.mark.parametrize(
    ("memory", "peak", "lines"),
    [
        (130, 123, ()),
        (90, 83, ("offload of train_rtdmd.rewards clipscore: true",)),
        (50, 43, ("offload of train_rtdmd.rewards clipscore: true", "train_rtdmd.micro_batch: 4")),
        (20, 13, ("offload of train_rtdmd.rewards clipscore: true", "train_rtdmd.micro_batch: 1")),
        (12, 13, ("offload of train_rtdmd.rewards clipscore: true", "train_rtdmd.micro_batch: 1")),
    ],
)
def test_settings_are_added_until_a_stage_fits(memory: float, peak: float, lines: tuple[str, ...]) -> None:
    found = fit("train_rtdmd", settings(), measure, memory)
    assert (found.settings, found.peak) == (lines, peak)


def test_nothing_is_proposed_that_is_set() -> None:
    """Blocks are computed again, the scorer is offloaded, there is no watch and a pass has one row."""
    done = settings(rewards=[CLIP | {"offload": True}, VERIFIER], micro_batch=1)
    found = fit("train_rtdmd", done, measure, 12)
    assert found.settings == () and found.peak == 13


def test_nothing_is_proposed_that_saves_nothing() -> None:
    def by_rows(params: Params) -> Memory:
        return Memory({}, {"policy": {"activations": 10.0 * params.train_rtdmd.micro_batch}})

    assert fit("train_rtdmd", settings(), by_rows, 45).settings == ("train_rtdmd.micro_batch: 4",)


def test_what_a_later_setting_made_needless_is_left_out() -> None:
    """The watch is what does not fit: neither the scorer nor the micro-batch has to change for it."""

    def watched(params: Params) -> Memory:
        watch = {"watch": {"activations": 500.0 + params.train_rtdmd.micro_batch}}
        memory = measure(params)
        return Memory(memory.parts, memory.phases | watch if params.train_rtdmd.watch.every else memory.phases)

    suite = {"name": "one", "prompts": "heldout", "rewards": ["world_verifier"]}
    watch = {"every": 1, "suites": [suite], "rewards": [VERIFIER]}
    params = settings(watch=watch)
    assert fit("train_rtdmd", params, watched, 130).settings == ("train_rtdmd.watch.every: 0",)
