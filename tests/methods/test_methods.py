"""The registry: every method is a set of parameters that the tree accepts, and a named section is held to it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.config import parse_params, preset
from rtdmd.config.presets import PRESETS, long_enough, merged
from rtdmd.config.render import params_text
from rtdmd.methods import METHODS, RECIPES, find_method
from rtdmd.methods._absent import ABSENT
from rtdmd.methods._card import card_text, flat


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_set_of_parameters_apart(name: str) -> None:
    """The printed file is read back, and differs from the preset's in the card's keys (and the recipe's name) alone."""
    method = METHODS[name]
    for base in ("world", "smoke"):
        params = preset(base, long_enough(base, method.changes()))
        assert parse_params(params_text(params, "a test")) == params
        mine, plain = (flat(tree.model_dump(mode="json")) for tree in (params, preset(base)))
        changed = {key for key, value in mine.items() if plain[key] != value}
        named = set(flat({method.stage: dict(method.settings), "model": dict(method.model)}))
        lengths = {"train_acdmd.iterations"} if base == "smoke" else set()  # of a card whose turns are far apart
        assert changed <= named | {f"{method.stage}.recipe"} | lengths
        assert all(mine[key] == value for key, value in flat(method.changes()).items())


def test_no_two_methods_of_a_stage_are_the_same() -> None:
    for stage in ("train_acdmd", "train_rtdmd"):
        seen: dict[str, str] = {}
        for method in (each for each in METHODS.values() if each.stage == stage):
            tree = preset("world", method.changes()).model_dump(mode="json")
            tree[stage].pop("recipe")
            assert str(tree) not in seen or method.name in ("admd", "eta-0.9"), (method.name, seen.get(str(tree)))
            seen[str(tree)] = method.name


def test_recipes_are_the_methods_that_name_settings_of_their_section() -> None:
    own = {"train_acdmd": {"custom", "published"}, "train_rtdmd": {"custom", "published", "corrected"}}
    for method in METHODS.values():
        if method.settings:
            own[method.stage].add(method.name)
    assert {name for name in own["train_acdmd"] if name != "custom"} == set(RECIPES["train_acdmd"])
    assert {name for name in own["train_rtdmd"] if name != "custom"} == set(RECIPES["train_rtdmd"])
    for stage, names in own.items():
        with pytest.raises(UserError) as refused:
            preset("world", {stage: {"recipe": "nobody's"}})
        allowed = str(refused.value).split("allowed: ")[1].split(";")[0]
        assert set(allowed.split(", ")) == names


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gdmd", {"matching_gain": 0.5}, "matching_gain: 0.5 with recipe: gdmd; allowed: 1.0, or recipe: custom"),
        ("grpo", {"weights": {"matching": 0.1}}, "weights.matching: 0.1 with recipe: grpo; allowed: 0.0"),
        ("subgrpo-2", {"trained_steps": 1}, "trained_steps: 1 with recipe: subgrpo-2; allowed: 2"),
        ("acdmd", {"consistency": {"weight": 0.1}}, "consistency.weight: 0.1 with recipe: acdmd; allowed: 0.01"),
    ],
)
def test_a_named_section_is_held_to_its_method(name: str, change: dict[str, Any], message: str) -> None:
    method = METHODS[name]
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        preset("world", merged(method.changes(), {method.stage: change}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_acdmd": {"fake_per_step": True, "consistency": {"weight": 0.01}}}, "with fake_per_step: true"),
        ({"train_rtdmd": {"credit": "gain", "matching_path": "reward"}}, "credit: gain with matching_path: reward"),
        ({"train_rtdmd": {"matching_gain": 1.0}}, "matching_gain: 1.0 with matching_path: random_step"),
        (
            {"train_rtdmd": {"weights": {"policy": 0.0, "matching": 0.0, "backprop": 0.0}}},
            "backprop, nft, awm, surrogate are all 0",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        preset("world", changes)


@pytest.mark.parametrize("name", METHODS)
def test_cards_say_where_a_method_comes_from_and_what_is_ours(name: str) -> None:
    method = METHODS[name]
    text = card_text(method)
    assert method.title in text and max(len(line) for line in text.splitlines()) <= 120
    assert all(getattr(method, field.name) for field in dataclasses.fields(method) if field.type == "str")
    for key in flat(dict(method.settings)):
        assert f"  {method.stage}.{key}: " in text


def test_every_real_backbone_takes_the_methods_of_stage_two() -> None:
    real = [name for name in PRESETS if name not in ("world", "smoke")]
    for name in real:
        for method in (each for each in METHODS.values() if each.stage == "train_rtdmd"):
            preset(name, method.changes() if method.settings else {})


def test_a_misspelt_method_names_its_neighbours_and_absent_ones_are_no_methods() -> None:
    with pytest.raises(UserError, match=r"'subgrp-2' is unknown; `rtdmd methods` lists them; did you mean .*subgrpo-2"):
        find_method("subgrp-2")
    assert not {name.lower() for name in ABSENT} & set(METHODS)
