"""The methods that can be compared: each a small file with its card, in the order of the comparison.

A method is a set of parameters of one stage (`rtdmd params world --method gdmd`), so nothing here is imported by the
stages. `rtdmd methods` lists them, `rtdmd methods NAME` prints a card.
"""

from __future__ import annotations

import difflib

from rtdmd.common.errors import UserError
from rtdmd.methods import acdmd, control, dmd2, dmd_nft, dmdr, draft, eta, gdmd, grpo, rtdmd, stepwise
from rtdmd.methods.card import Method, StageName

_FILES = (acdmd, dmd2, eta, rtdmd, control, grpo, draft, gdmd, dmd_nft, dmdr, stepwise)
METHODS: dict[str, Method] = {method.name: method for file in _FILES for method in file.METHODS}


def find_method(name: str) -> Method:
    """A method by name; UserError with the nearest names otherwise."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"method {name!r} is unknown; `rtdmd methods` lists them{hint}")
    return METHODS[name]


def methods_of(stage: StageName) -> list[Method]:
    """The methods of a training stage, in their order."""
    return [method for method in METHODS.values() if method.stage == stage]
