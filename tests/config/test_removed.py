"""An old params.yaml: each key that is none any more is named with what became of it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from rtdmd.common.errors import UserError
from rtdmd.config import PRESETS, preset
from rtdmd.config.removed import MOVED, REMOVED, RENAMED
from rtdmd.methods._card import flat


def told_of(key: str) -> str:
    """What is said of a file that still has a key."""
    section, *parents, name = key.split(".")
    inner: dict[str, object] = {name: 0.5}
    for parent in reversed(parents):
        inner = {parent: inner}
    with pytest.raises(UserError) as caught:
        preset("world", {section: inner})
    return str(caught.value)


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_says_what_became_of_it(key: str) -> None:
    value, constants, file = REMOVED[key]
    assert told_of(key) == (
        f"preset world: {key}: no setting any more, always {value} ({constants} in {file}); delete the key"
    )


@pytest.mark.parametrize("key", RENAMED)
def test_a_renamed_key_names_those_that_say_the_same_now(key: str) -> None:
    assert told_of(key) == f"preset world: {key}: renamed; set {' and '.join(RENAMED[key])} instead"
    keys = set(flat(PRESETS["world"]))
    for name in RENAMED[key]:
        assert name in keys or any(inner.startswith(f"{name}.") for inner in keys)  # a key, or a section of keys


def test_the_optimizers_took_the_rates_and_what_both_roles_shared() -> None:
    assert told_of("train_rtdmd.lr_fake").endswith(
        ": train_rtdmd.lr_fake: renamed; set train_rtdmd.fake_optimizer.lr instead"
    )
    assert told_of("train_acdmd.stop").endswith(": train_acdmd.stop: renamed; set train_acdmd.rollout_stop instead")
    assert told_of("train_acdmd.weight_decay").endswith(
        "set train_acdmd.generator_optimizer.weight_decay and train_acdmd.fake_optimizer.weight_decay instead"
    )


@pytest.mark.parametrize("key", REMOVED)
def test_the_constants_have_the_values_that_are_told(key: str) -> None:
    value, constants, file = REMOVED[key]
    module = import_module(Path(file).with_suffix("").as_posix().replace("/", "."))
    names = constants.replace(" and ", ", ").split(", ")
    assert [getattr(module, name) for name in names] == [float(x) for x in value.replace(" and ", ", ").split(", ")]


@pytest.mark.parametrize("key", MOVED)
def test_a_key_of_the_evaluation_is_one_of_its_suites_now(key: str) -> None:
    with pytest.raises(UserError) as caught:
        preset("world", {"evaluate": {key.split(".")[1]: 2}})
    assert str(caught.value) == f"preset world: {key}: {MOVED[key]}"
