"""Reading `params.yaml` and the other settings files: one line of plain words for whatever is wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rtdmd.common.errors import UserError
from rtdmd.common.parsing import read_text
from rtdmd.common.yaml_text import parse_yaml
from rtdmd.config.tree import Params

Settings = TypeVar("Settings", bound=BaseModel)
COMPLETE = "`rtdmd params world` prints a complete file"


def load_params(path: Path | str = "params.yaml") -> Params:
    """The validated tree of a params file. UserError (one line) when it is missing, no YAML, or not allowed."""
    path = Path(path)
    return parse_params(read_text(path, f"`rtdmd params world > {path}` writes one"), str(path))


def load_settings(model: type[Settings], path: Path) -> Settings:
    """The validated tree of a settings file that git keeps. UserError (one line) as for params.yaml."""
    back = f"`git checkout {path}` brings it back"
    return validate_as(model, read_sections(read_text(path, back), str(path), back), str(path), back)


def parse_params(text: str, name: str = "params.yaml") -> Params:
    """The validated tree of a params file's text; `name` is how errors call it."""
    return validate(read_sections(text, name), name)


def read_sections(text: str, name: str, remedy: str = COMPLETE) -> dict[str, Any]:
    """A YAML mapping; UserError with the line number, or with the ``remedy``, otherwise."""
    tree = parse_yaml(text, name)
    if not isinstance(tree, dict):
        raise UserError(f"{name}: sections are expected, got {type(tree).__name__}; {remedy}")
    return tree


def validate(tree: dict[str, Any], name: str = "params.yaml") -> Params:
    """The validated tree of nested dictionaries; UserError naming key, value and what is allowed."""
    return validate_as(Params, tree, name, COMPLETE)


def validate_as(model: type[Settings], tree: dict[str, Any], name: str, remedy: str) -> Settings:
    """The same for any settings; ``remedy``: where a complete file comes from."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        errors = sorted(
            error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden"
        )  # causes first
        more = f" ({len(errors) - 1} more after this one)" if len(errors) > 1 else ""
        raise UserError(f"{name}: {_sentence(errors[0], model, remedy)}{more}") from error


def _sentence(error: ErrorDetails, model: type[BaseModel], remedy: str) -> str:
    """One pydantic error as `key: value; what is allowed`."""
    key = _dotted(error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown_key(model, error["loc"], error["input"])
    if error["type"] == "missing":
        return f"{key} is missing; {remedy}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict | BaseModel):
        return (
            f"{key}.{message}" if key else message
        )  # a check between keys: its message names key, value and what is allowed
    if error["type"] == "literal_error":
        allowed = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        hint = _did_you_mean(error["input"], allowed.split(", "))
        return f"{key}: {_short(error['input'])} is not allowed; allowed: {allowed}{hint}"
    rule = message.removeprefix("allowed: ").removeprefix("Input should be ")
    return f"{key}: {_short(error['input'])} is not allowed; allowed: {rule[0].lower()}{rule[1:]}"


def _unknown_key(model: type[BaseModel], location: tuple[int | str, ...], value: Any) -> str:
    """Unknown keys name their nearest relatives, in the same section first."""
    *parents, last = location
    allowed = list(_fields_at(model, parents))
    near = difflib.get_close_matches(str(last), allowed, n=1)
    if not near:
        leaves = {path.rsplit(".", 1)[-1]: path for path in _all_keys(model)}
        near = [leaves[leaf] for leaf in difflib.get_close_matches(str(last), list(leaves), n=1)]
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{_dotted(location)}: unknown key (value {_short(value)}); allowed: {', '.join(allowed)}{hint}"


def _fields_at(model: type[BaseModel], parents: list[int | str]) -> Iterator[str]:
    """Names of the fields of the section found by walking `parents` from `model`."""
    for part in parents:
        if isinstance(part, str):
            model = _section_type(model, part) or model
    yield from model.model_fields


def _section_type(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The section class behind a field (itself or the members of its tuple), None for a plain value."""
    annotation: Any = model.model_fields[field].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of the tree."""
    for name in model.model_fields:
        yield prefix + name
        section = _section_type(model, name)
        if section is not None:
            yield from _all_keys(section, f"{prefix}{name}.")


def _did_you_mean(value: Any, allowed: list[str]) -> str:
    near = difflib.get_close_matches(str(value), allowed, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _dotted(location: tuple[int | str, ...]) -> str:
    """('a', 'b', 0, 'c') -> a.b[0].c"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")


def _short(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
