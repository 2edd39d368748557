"""The generated files are in step with the tree, and every reader of YAML sees the same numbers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import BaseModel
from ruamel.yaml import YAML

from rtdmd.config import PRESETS, Params, parse_params, preset
from rtdmd.config.presets import RECIPES
from rtdmd.config.render import params_text, schema_text

SCHEMA = Path("workflow/schemas/params.schema.json")


def test_schema_is_the_trees() -> None:
    assert SCHEMA.read_text() == schema_text(), "`make generated`"


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_being_written_and_pass_the_schema(name: str) -> None:
    text = params_text(preset(name), "x")
    assert parse_params(text) == preset(name)
    assert schema_errors(yaml.safe_load(text)) == []


def schema_errors(tree: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    return [error.message for error in validator.iter_errors(tree)]


def test_schema_refuses_what_the_tree_refuses() -> None:
    tree = yaml.safe_load(params_text(preset("world"), "x"))
    tree["model"]["eta"] = 2
    assert schema_errors(tree) == ["2 is greater than the maximum of 1"]


def test_yaml_1_1_and_1_2_read_the_same_values() -> None:
    text = params_text(preset("world", RECIPES["published"]), "x")  # has numbers as small as 1e-5
    assert yaml.safe_load(text) == YAML(typ="safe", pure=True).load(text)
    assert yaml.safe_load(text)["train_rtdmd"]["clip_range"] == 1e-5


@pytest.mark.parametrize(
    "title", ["1e-4", "050", "0o17", "-1", "+.5", "1_000", "2024-02-30", "12:30", "true", "~", "# no"]
)
def test_a_title_that_looks_like_a_number_stays_a_title(title: str) -> None:
    text = params_text(preset("smoke", {"report": {"title": title}}), "x")
    assert parse_params(text).report.title == title
    assert yaml.safe_load(text)["report"]["title"] == title == YAML(typ="safe", pure=True).load(text)["report"]["title"]


def fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        inner = [a for a in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(a, type)]
        sections = [a for a in inner if issubclass(a, BaseModel)]
        for section in sections:
            yield from fields(section)
        if field.annotation not in sections:
            yield f"{model.__name__}.{name}", field


def test_every_field_says_what_it_is_and_where_it_comes_from() -> None:
    for name, field in fields(Params):
        extra = field.json_schema_extra
        assert extra and extra["summary"] and extra["source"], name
        assert field.description.startswith(extra["summary"]), name
