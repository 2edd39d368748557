"""The world's validation captions: a part of the training captions, and what is trained on beside them is the rest."""

from __future__ import annotations

from collections import Counter

from rtdmd.prompts.sources.world import VALIDATION, world_sources


def test_fit_and_validation_are_the_two_parts_of_the_training_captions() -> None:
    sets = {split: [source.prompt for source in world_sources(split)] for split in ("train", "fit", "validation")}
    assert (len(sets["fit"]), len(sets["validation"])) == (230, 16)
    assert sorted(sets["fit"] + sets["validation"]) == sorted(sets["train"])
    assert Counter(source.tag for source in world_sources("validation")) == VALIDATION
    assert {source.tag for source in world_sources("fit")} == set(VALIDATION)
