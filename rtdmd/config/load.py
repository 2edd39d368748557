"""Reading `params.yaml` and the other settings files: one line of plain words for whatever is wrong with them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from rtdmd.common.errors import UserError
from rtdmd.common.parsing import did_you_mean, read_text
from rtdmd.common.section import fields_in_order
from rtdmd.common.yaml_text import parse_yaml
from rtdmd.config.removed import removed
from rtdmd.config.text_window import check_prompt
from rtdmd.config.tree import Params

Settings = TypeVar("Settings", bound=BaseModel)
COMPLETE = "`rtdmd params world` prints a complete file"


def load_params(path: Path | str = "params.yaml") -> Params:
    """The validated tree of a params file. UserError (one line) when it is missing, no YAML, or not allowed."""
    path = Path(path)
    params = parse_params(read_text(path, f"`rtdmd params world > {path}` writes one"), str(path))
    check_prompt(params, path.parent)
    return params


def load_settings(model: type[Settings], path: Path, kept: str) -> Settings:
    """The validated tree of a settings file. UserError (one line) as for params.yaml; ``kept``: the file of its kind
    that the repository has."""
    back = f"`git checkout {kept}` brings the repository's own back"
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
    section, field, location = _section_at(model, error["loc"])
    key = _dotted(location)
    if error["type"] == "extra_forbidden":
        return _unknown_key(model, section, location, error["input"])
    if error["type"] == "missing":
        return f"{key} is missing; {_meaning(section, location) or remedy}"
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return _unknown_kind(error, key, list(_kinds(section, field)))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict | BaseModel):
        return (
            f"{key}.{message}" if key else message
        )  # a check between keys: its message names key, value and what is allowed
    if error["type"] == "literal_error":
        allowed = error["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        hint = did_you_mean(error["input"], allowed.split(", "))
        return f"{key}: {_short(error['input'])} is not allowed; allowed: {allowed}{hint}"
    rule = message.removeprefix("allowed: ").removeprefix("Input should be ")
    return f"{key}: {_short(error['input'])} is not allowed; allowed: {rule[0].lower()}{rule[1:]}"


def _meaning(section: type[BaseModel], location: tuple[int | str, ...]) -> str | None:
    """What the missing key of an entry in a list may be; None for any other key."""
    if not isinstance(location[-2:][0], int):
        return None
    about: Any = section.model_fields[str(location[-1])].json_schema_extra
    return f"allowed: {about['summary']}"


def _unknown_kind(error: ErrorDetails, key: str, allowed: list[str]) -> str:
    """An entry whose name is missing or is none of those allowed."""
    if error["type"] == "union_tag_not_found":
        return f"{key}.name is missing; allowed: {', '.join(allowed)}"
    name = error["ctx"]["tag"]
    return f"{key}.name: {_short(name)} is not allowed; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}"


def _unknown_key(model: type[BaseModel], section: type[BaseModel], location: tuple[int | str, ...], value: Any) -> str:
    """Unknown keys name their nearest relatives, in the same section first."""
    told = removed(_dotted(location))
    if told is not None:
        return told
    last = location[-1]
    allowed = list(fields_in_order(section))
    near = difflib.get_close_matches(str(last), allowed, n=1)
    if not near:
        leaves = {path.rsplit(".", 1)[-1]: path for path in _all_keys(model)}
        near = [leaves[leaf] for leaf in difflib.get_close_matches(str(last), list(leaves), n=1)]
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{_dotted(location)}: unknown key (value {_short(value)}); allowed: {', '.join(allowed)}{hint}"


def _section_at(
    model: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[type[BaseModel], str | None, tuple[int | str, ...]]:
    """The section that has (or lacks) the key at a location, its field there (None: the section itself), and the
    location as the file has it.

    Where entries are of several kinds, pydantic puts the kind's name after the number of the entry.
    """
    section = model
    field = None
    found: list[int | str] = []
    for part in location:
        if isinstance(part, str):
            kinds = _kinds(section, field) if found and isinstance(found[-1], int) else {}
            if part in kinds:
                section = kinds[part]
                field = None
                continue
            inner = _section_type(section, field)
            section, field = (inner, part) if inner else (section, field or part)  # else a mapping's own key
        found.append(part)
    return section, field, tuple(found)


def _kinds(section: type[BaseModel], field: str | None) -> dict[str, type[BaseModel]]:
    """The classes of the entries in a field, a list or a mapping of lists, by the names that tell them apart; {} where
    all are of one kind."""
    if field not in section.model_fields:
        return {}
    for entry in _inside(section.model_fields[field].annotation):
        if get_origin(entry) is Annotated and get_origin(get_args(entry)[0]) is Union:
            return {get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(get_args(entry)[0])}
    return {}


def _inside(annotation: Any) -> Iterator[Any]:
    """An annotation and all that it is made of."""
    yield annotation
    for inner in get_args(annotation):
        yield from _inside(inner)


def _section_type(model: type[BaseModel], field: str | None) -> type[BaseModel] | None:
    """The section class behind a field (itself or the members of its tuple), None for a plain value, for entries of
    several kinds and for what is no field."""
    if field not in model.model_fields:
        return None
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


def _dotted(location: tuple[int | str, ...]) -> str:
    """('a', 'b', 0, 'c') -> a.b[0].c; a key that is no plain word is quoted, so that the message shows it."""
    words = (part if isinstance(part, int) or re.fullmatch(r"[\w-]+", part) else repr(part) for part in location)
    return "".join(f"[{word}]" if isinstance(word, int) else f".{word}" for word in words).removeprefix(".")


def _short(value: Any, width: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."
