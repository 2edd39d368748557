"""An old params.yaml: each key that is none any more is named with what became of it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from rtdmd.common.errors import UserError
from rtdmd.config import preset
from rtdmd.config.removed import REMOVED


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_says_what_became_of_it(key: str) -> None:
    section, *parents, name = key.split(".")
    inner: dict[str, object] = {name: 0.5}
    for parent in reversed(parents):
        inner = {parent: inner}
    with pytest.raises(UserError) as caught:
        preset("world", {section: inner})
    value, constants, file = REMOVED[key]
    told = f"preset world: {key}: no setting any more, always {value} ({constants} in {file}); delete the key"
    assert str(caught.value) == told


@pytest.mark.parametrize("key", REMOVED)
def test_the_constants_have_the_values_that_are_told(key: str) -> None:
    value, constants, file = REMOVED[key]
    module = import_module(Path(file).with_suffix("").as_posix().replace("/", "."))
    names = constants.replace(" and ", ", ").split(", ")
    assert [getattr(module, name) for name in names] == [float(x) for x in value.replace(" and ", ", ").split(", ")]
