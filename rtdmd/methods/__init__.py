"""The methods that can be compared: each a small file here, which the package finds, with its cards in `METHODS`.

A method is a set of parameters of one stage (`rtdmd params world --method gdmd`): data, which imports nothing of ours
but the card's class. The configuration reads it, so a section with `recipe: gdmd` is held to GDMD's settings.
`rtdmd methods` lists them, `rtdmd methods NAME` prints a card.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rtdmd.common.discovery import discover
from rtdmd.common.errors import UserError
from rtdmd.common.parsing import did_you_mean
from rtdmd.methods import acdmd, rtdmd
from rtdmd.methods._card import Method

_FOUND = [method for methods in discover("rtdmd.methods", "METHODS", tuple).values() for method in methods]
METHODS: dict[str, Method] = {method.name: method for method in sorted(_FOUND, key=lambda method: method.stage)}
"""By name: stage one's first, and those of a stage in the order of their files."""

RECIPES: dict[str, dict[str, Mapping[str, Any]]] = {"train_acdmd": {}, "train_rtdmd": {}}
"""What `recipe: <name>` of a training section promises, by stage and name."""
for _method in METHODS.values():
    if _method.settings:
        RECIPES[_method.stage][_method.name] = _method.settings
RECIPES["train_acdmd"] |= acdmd.RECIPES
RECIPES["train_rtdmd"] |= rtdmd.RECIPES


def find_method(name: str) -> Method:
    """A method by name; UserError with the nearest one otherwise."""
    if name not in METHODS:
        raise UserError(f"method {name!r} is unknown; `rtdmd methods` lists them{did_you_mean(name, METHODS)}")
    return METHODS[name]
