"""What a rehearsal makes smaller: the keys that the page lists, and no other."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.pins import UNPINNED
from rtdmd.config import PRESETS, Params, preset
from rtdmd.experiments.settings import all_params, load_local
from rtdmd.pipeline.to_fill_in import commits_to_fill_in
from rtdmd.rehearse.reduced import REDUCED, REPOSITORY, filled_in, leaves, reduced, small_side, with_processes
from tests.workspace import REPOSITORY as CHECKOUT

REAL = [name for name in PRESETS if name not in ("world", "smoke")]


def changed(before: Params, after: Params) -> set[str]:
    """Keys whose values differ, an entry of a list by the list's name."""
    one, two = (
        {key: section[name] for key, section, name in leaves(params.model_dump(mode="json"))}
        for params in (before, after)
    )
    assert one.keys() == two.keys()
    return {re.sub(r"\[\d+\]", "", key) for key in one if one[key] != two[key]}


def test_only_what_is_listed_changes_and_all_else_is_equal() -> None:
    every = {name: preset(name) for name in PRESETS} | all_params(load_local(CHECKOUT))
    for name, params in every.items():
        small = reduced(params, "cpu")
        assert changed(params, small) <= set(REDUCED), name
        assert reduced(small, "cpu") == small, name


def test_every_key_that_is_listed_is_on_the_page_with_what_becomes_of_it() -> None:
    page = (CHECKOUT / "docs/evidence/rehearsal.md").read_text(encoding="utf-8")
    for key, to in REDUCED.items():
        assert f"| `{key}` | {to} |" in page


def test_processes_sharding_and_micro_batches_stay_as_far_as_two_go() -> None:
    split: dict[str, Any] = {"processes": 16, "sharding": "base"}
    params = preset("flux2-klein-9b", {"train_acdmd": split | {"micro_batch": 1}, "train_rtdmd": split})
    small = reduced(params, "cpu")
    for stage in (small.train_acdmd, small.train_rtdmd):
        assert (stage.processes, stage.sharding, stage.micro_batch) == (2, "base", 1)
    assert (small.train_acdmd.batch_size, small.train_acdmd.iterations) == (4, 4)
    hybrid = reduced(
        preset("sd3m", {"train_rtdmd": split | {"sharding": "hybrid", "shard_group": 8}}), "cpu"
    ).train_rtdmd
    assert (hybrid.processes, hybrid.sharding, hybrid.shard_group) == (2, "hybrid", 2)
    assert (small.train_rtdmd.fake_batch_size, small.train_rtdmd.last_step_batch_size) == (4, 4)


def test_two_processes_can_be_asked_for_whatever_the_params_say() -> None:
    asked = with_processes(preset("sd35m"), 2)
    assert changed(preset("sd35m"), asked) == {"train_acdmd.processes", "train_rtdmd.processes"}
    small = reduced(asked, "cpu")
    assert (small.train_acdmd.processes, small.train_rtdmd.processes) == (2, 2)
    with pytest.raises(UserError, match=r"^--processes 2: train_acdmd.*allowed: 1 to batch_size = 1"):
        with_processes(preset("smoke", {"train_acdmd": {"batch_size": 1, "micro_batch": 1}}), 2)


def test_a_watched_training_looks_twice_at_two_prompts() -> None:
    small = reduced(preset("sd3m"), "cpu")
    assert (small.train_acdmd.watch.every, small.train_rtdmd.watch.every) == (4, 2)
    assert (small.train_acdmd.watch.max_prompts, small.train_rtdmd.watch.max_prompts) == (2, 2)
    assert reduced(preset("world"), "cpu").train_acdmd.watch.every == min(4, preset("world").train_acdmd.watch.every)


@pytest.mark.parametrize(("side", "small"), [(36, 36), (64, 64), (256, 32), (512, 32), (768, 48), (1024, 64)])
def test_sides(side: int, small: int) -> None:
    assert small_side(side) == small


def test_an_upload_can_be_shown_and_is_never_made() -> None:
    params = preset("sd3m", {"publish": {"repo_id": "me/mine", "dry_run": False}})
    assert reduced(params, "cpu").publish.model_dump(include={"repo_id", "dry_run"}) == {
        "repo_id": "me/mine",
        "dry_run": True,
    }
    assert reduced(preset("sd3m"), "cpu").publish.repo_id == REPOSITORY


@pytest.mark.parametrize("name", REAL)
def test_placeholders_become_a_commit_for_each_repository(name: str) -> None:
    params = preset(name)
    full = filled_in(params)
    empty = {key for key, section, pin in leaves(params.model_dump(mode="json")) if section[pin] == UNPINNED}
    assert commits_to_fill_in(full) == {}
    assert changed(params, full) == {re.sub(r"\[\d+\]", "", key) for key in empty}
    rewards = {reward.name: reward.model_dump() for reward in full.evaluate.rewards}
    assert rewards["clipscore"]["revision"] == full.train_rtdmd.rewards[0].model_dump()["revision"]
    assert rewards["clipscore"]["revision"] == rewards["geneval"]["colour_revision"]
    assert rewards["clipscore"]["revision"] == rewards["aesthetic"]["base_revision"]
    assert rewards["hpsv2"]["base_revision"] == rewards["pickscore"]["base_revision"]
    assert rewards["hpsv2"]["revision"] != rewards["hpsv2"]["base_revision"]


def test_a_commit_that_is_there_stays() -> None:
    assert filled_in(preset("sd3m", {"model": {"revision": "a" * 40}})).model.revision == "a" * 40
