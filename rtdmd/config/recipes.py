"""Named recipes: a training section with `recipe: <name>` is held to what that method promises (rtdmd/methods)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

StageOneRecipe = Literal[
    "custom", "acdmd", "acdmd-0.001", "acdmd-0.005", "acdmd-0.1", "admd", "dmd2", "dmd2-last", "dmd2-steps"
]
StageTwoRecipe = Literal[
    "published",
    "corrected",
    "custom",
    "dmd-nft",
    "dmdr-grpo",
    "dmdr-nft",
    "dmdr-refl",
    "draft-1",
    "gdmd",
    "grpo",
    "matching-only",
    "rtdmd-corrected",
    "rtdmd-published",
    "stepwise",
    "stepwise-to-go",
    "subgrpo-1",
    "subgrpo-1-last",
    "subgrpo-2",
    "subgrpo-2-last",
    "subgrpo-3",
    "subgrpo-3-last",
]


def check_recipe(stage: str, recipe: str, mine: Mapping[str, Any], named: Mapping[str, Any] | None = None) -> None:
    """ValueError naming the first setting of the section ``mine`` that is not what the recipe promises. ``named``:
    recipes that are no methods."""
    if recipe == "custom":
        return
    promised = (named or {}).get(recipe)
    if promised is None:
        from rtdmd.methods import METHODS  # its files read this package

        promised = METHODS[recipe].settings
    from rtdmd.methods.card import flat

    have = flat(mine)
    for key, value in flat(_plain(promised)).items():
        if have[key] != value:
            raise ValueError(f"{key}: {have[key]} with recipe: {recipe}; allowed: {value}, or recipe: custom")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
