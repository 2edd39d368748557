"""Named recipes: a training section with `recipe: <name>` is held to what that method promises (`rtdmd.methods`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from rtdmd.methods import RECIPES
from rtdmd.methods._card import StageName, flat

if TYPE_CHECKING:
    StageOneRecipe = str
    StageTwoRecipe = str
else:
    StageOneRecipe = Literal[("custom", *sorted(RECIPES["train_acdmd"]))]
    StageTwoRecipe = Literal[("custom", *sorted(RECIPES["train_rtdmd"]))]


def check_recipe(stage: StageName, recipe: str, mine: Mapping[str, Any]) -> None:
    """ValueError naming the first setting of a stage's section ``mine`` that is not what its recipe promises."""
    if recipe == "custom":
        return
    have = flat(mine)
    for key, value in flat(RECIPES[stage][recipe]).items():
        plain = list(value) if isinstance(value, tuple) else value
        if have[key] != plain:
            raise ValueError(f"{key}: {have[key]} with recipe: {recipe}; allowed: {plain}, or recipe: custom")
