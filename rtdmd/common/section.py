"""What every section of the configuration shares: strict types, and fields that carry their unit and source."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A frozen group of parameters in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def fields_in_order(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields as they are written out: a section's own before those that it shares with others."""
    own = inspect.get_annotations(section)
    return dict(sorted(section.model_fields.items(), key=lambda item: item[0] not in own))


def _number(value: Any) -> Any:
    """A number from YAML. `1e-4` is a string to PyYAML and a float to DVC: here both mean the number."""
    if isinstance(value, bool):
        raise ValueError("allowed: a number")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError as error:
            raise ValueError("allowed: a number") from error
    return value


Real = Annotated[float, BeforeValidator(_number)]
"""A finite float; integers and strings that parse as numbers are accepted, truth values are not."""

Whole = Annotated[int, Strict()]
"""An integer; neither 3.0 nor "3" nor true."""

Flag = Annotated[bool, Strict()]
"""true or false."""


def param(text: str, *, unit: str = "", source: str, **limits: Any) -> Any:
    """A required field with its documentation.

    `text`: what the value does, in a few words. `unit`: of the value, empty for a pure number or a choice. `source`:
    where the definition or the usual value comes from: the paper (arXiv 2605.26108), its public code, a library, or
    our own choice. `limits`: pydantic's (`ge`, `lt`, `min_length`...) and `default` for the few fields that may be
    left out.
    """
    description = text + (f" [{unit}]" if unit else "") + f". Source: {source}"
    return Field(description=description, json_schema_extra={"unit": unit, "source": source, "summary": text}, **limits)
