"""What a setting's source says of the public code's values is what the presets of real backbones have.

The value of a preset stands beside its key in params.yaml, so no source repeats one of ours: it would age unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from pydantic import BaseModel

from rtdmd.config import Params, preset
from rtdmd.config.real import REAL

FAMILIES = {
    "SD3": {"sd3m", "sd35m"},
    "SD3-M": {"sd3m"},
    "SD3.5-M": {"sd35m"},
    "FLUX": {"flux1-dev", "flux2-klein-4b", "flux2-klein-9b"},
    "FLUX.1": {"flux1-dev"},
    "FLUX.2": {"flux2-klein-4b", "flux2-klein-9b"},
}
NAMES = "|".join(re.escape(name) for name in sorted(FAMILIES, key=len, reverse=True))
SIZE = "the machine's: the preset's head says what the public code had on all GPUs together"
DEPARTS = {
    "train_acdmd.processes": SIZE,
    "train_rtdmd.processes": SIZE,
    "train_acdmd.sharding": SIZE,
    "train_rtdmd.sharding": SIZE,
    "train_acdmd.shard_group": SIZE,
    "train_rtdmd.shard_group": SIZE,
    "train_acdmd.batch_size": SIZE,
    "train_acdmd.micro_batch": SIZE,
    "train_rtdmd.fake_batch_size": SIZE,
    "train_rtdmd.last_step_batch_size": SIZE,
    "train_rtdmd.rewards": "a list of scorers; tests/config/test_real_presets.py has it",
    "evaluate.suites": "a list of suites",
    "train_acdmd.watch.every": "both stages' in one line; tests/config/test_published_settings.py has them",
    "train_rtdmd.watch.every": "the same",
    "train_acdmd.watch.max_prompts": "the same",
    "train_rtdmd.watch.max_prompts": "the same",
    "train_acdmd.watch.suites": "a list of suites",
    "train_rtdmd.watch.suites": "a list of suites",
    "train_acdmd.watch.rewards": "a list of scorers",
    "train_rtdmd.watch.rewards": "a list of scorers",
}
"""Claims that no preset's value can be compared with, and why."""


def settings(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, source) of every plain value."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from settings(value, f"{prefix}{name}.")
        else:
            extra: Any = field.json_schema_extra
            yield f"{prefix}{name}", extra["source"]


SETTINGS = dict(settings(preset("sd35m")))
CLAIMS = {key: source for key, source in SETTINGS.items() if "public code:" in source}


def at(params: Params, key: str) -> Any:
    value: Any = params
    for part in key.split("."):
        value = getattr(value, part)
    return value


def plain(text: str, like: Any) -> Any:
    """A claimed value as the type of ``like``."""
    if isinstance(like, bool):
        return {"true": True, "false": False}[text]
    if isinstance(like, int | float):
        return float(Fraction(text))
    return text


def claimed(source: str, like: Any) -> dict[str, Any]:
    """Preset -> the value that a source claims for the public code."""
    text = source.split("public code:")[1].split(";")[0].strip()
    text = re.sub(r" \([^)]*\)", "", text)
    text = re.sub(r",? on (GPU|all GPUs together)$", "", text)
    text = text.removeprefix("about ")
    if isinstance(like, tuple):
        return dict.fromkeys(REAL, tuple(float(part) for part in text.split(", ")))
    found: dict[str, Any] = {}
    for part in text.split(", "):
        label = re.match(rf"({NAMES}) ?", part)
        told = part[label.end() :] if label else part
        found |= dict.fromkeys(FAMILIES[label[1]] if label else REAL, told)
    return {name: plain(told, like) for name, told in found.items()}


def test_most_claims_are_read() -> None:
    assert len(CLAIMS) > 50 and set(DEPARTS) <= CLAIMS.keys()


@pytest.mark.parametrize("key", sorted(CLAIMS.keys() - DEPARTS.keys()))
def test_the_public_codes_value_is_the_presets(key: str) -> None:
    values = claimed(CLAIMS[key], at(preset("sd35m"), key))
    if key == "train_rtdmd.consistency.weight":  # the source's own exception, in words
        values |= {"flux1-dev": 0.0, "flux2-klein-9b": 0.0}
    for name, value in values.items():
        assert at(preset(name), key) == value, name


@pytest.mark.parametrize("key", sorted(SETTINGS))
def test_no_source_repeats_a_value_of_ours(key: str) -> None:
    assert not re.search(r"\b(world|ours):? -?\d", SETTINGS[key])
