"""Reading YAML so that everyone who reads it sees the same values.

params.yaml and dvc.yaml have two readers: this package by PyYAML, which is YAML 1.1, and DVC by ruamel, which is YAML
1.2. ``050`` is 40 to one and 50 to the other, ``on`` a truth value to one and text to the other; and DVC decides by
its own reading what is out of date. So what the two read differently is refused. One difference is mended instead,
since `dvc exp run -S` writes it: ``3e-05``, text in YAML 1.1, is read here as the number that DVC reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from copy import deepcopy
from functools import lru_cache
from typing import Any

import yaml

from rtdmd.common.errors import UserError
from rtdmd.common.parsing import first_line

MAX_VALUES = 100_000
"""Values of one file, counted where aliases stand for them: a few lines of aliases can stand for more than a machine
holds."""

_NOT_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
_MAX_BITS = 64
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")}
_SCALAR_ERRORS = (ValueError, KeyError, IndexError, AttributeError, OverflowError)  # of PyYAML's constructors


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; a key given twice, a key that is no text and a value that cannot be held are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _fault(f"a key is text, and this one is {_shown(key)}", key_node)
            if key in seen:
                raise _fault(f"the key {key!r} is given twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.rsplit(":", 1)[-1]
        if node.tag not in _TAGS:
            raise _fault(f"{kind} is none of text, number, truth value, null, date, list and mapping", node)
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        try:
            value = super().construct_object(node, deep)
        except _SCALAR_ERRORS as error:
            raise _fault(f"{node.value[:40]!r} is no {kind} ({first_line(error)[:60]})", node) from error
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise _fault(f"an integer of more than {_MAX_BITS} bits", node)
        if isinstance(value, str) and (found := _NOT_TEXT.search(value)):
            raise _fault(f"the control character {found[0]!r} in a text", node)
        return value


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*\.?[0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _fault(message: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def parse_yaml(text: str, name: str, remedy: str = "") -> Any:
    """What YAML text says to both readers. UserError, in one line with the line's number, where it is no YAML, where
    the two read a value differently, or where it stands for more values than ``MAX_VALUES``. ``remedy``: what to do
    about a file that is no YAML."""
    return deepcopy(_parsed(text, name, remedy, both=True))


def parse_yaml_11(text: str, name: str, remedy: str = "") -> Any:
    """What YAML text says to PyYAML; UserError likewise. For values that no other program reads from there, and for
    files that a program wrote."""
    return deepcopy(_parsed(text, name, remedy, both=False))


@lru_cache(maxsize=8)
def _parsed(text: str, name: str, remedy: str, both: bool) -> Any:
    """A stage reads params.yaml when it opens and when it ends; reading takes a tenth of a second."""
    then = f"; {remedy}" if remedy else ""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
        _count(value, [0])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise UserError(
            f"{name}{place}: not YAML: {getattr(error, 'problem', None) or first_line(error)}{then}"
        ) from error
    except RecursionError as error:
        raise UserError(f"{name}: not YAML that can be read: nested too deep{then}") from error
    except _TooMany as error:
        raise UserError(f"{name}: its aliases stand for more than {MAX_VALUES} values; write them out") from error
    if both and node is not None and (difference := _difference(node, value, text)) is not None:
        line, message = difference
        raise UserError(f"{name}:{line}: {message}")
    return value


class _TooMany(Exception):
    pass


def _count(value: Any, seen: list[int]) -> None:
    seen[0] += 1
    if seen[0] > MAX_VALUES:
        raise _TooMany
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _count(inner, seen)


def _difference(node: yaml.Node, ours: Any, text: str) -> tuple[int, str] | None:
    """The first value that DVC reads otherwise: its line and a sentence; None where there is none."""
    from ruamel.yaml import YAML, YAMLError

    try:
        theirs = YAML(typ="safe").load(text)
    except YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        return line, f"DVC cannot read it ({getattr(error, 'problem', None) or first_line(error)})"
    return _unlike(node, ours, theirs, "")


def _unlike(node: yaml.Node, ours: Any, theirs: Any, path: str) -> tuple[int, str] | None:
    if type(ours) is not type(theirs) or (not isinstance(ours, dict | list) and not _equal(ours, theirs)):
        return node.start_mark.line + 1, _sentence(node, ours, theirs, path)
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key = key_node.value
            if key not in theirs:
                return key_node.start_mark.line + 1, f"{path}{key}: DVC reads another key; write it in quotes"
            found = _unlike(value_node, ours[key], theirs[key], f"{path}{key}.")
            if found is not None:
                return found
    if isinstance(node, yaml.SequenceNode):
        if len(ours) != len(theirs):
            return node.start_mark.line + 1, f"{path.removesuffix('.')}: DVC reads a list of another length"
        for index, (item, mine, other) in enumerate(zip(node.value, ours, theirs, strict=True)):
            found = _unlike(item, mine, other, f"{path.removesuffix('.')}[{index}].")
            if found is not None:
                return found
    return None


def _equal(ours: Any, theirs: Any) -> bool:
    return bool(ours == theirs) or (ours != ours and theirs != theirs)


def _sentence(node: yaml.Node, ours: Any, theirs: Any, path: str) -> str:
    key = f"{path.removesuffix('.')}: " if path else ""
    text = node.value if isinstance(node, yaml.ScalarNode) else "this"
    mine = _shown(ours)
    other = _shown(theirs)
    return f"{key}{text[:40]} is {mine} to YAML 1.1 and {other} to DVC (YAML 1.2); write {mine} or {other}"


def _shown(value: Any) -> str:
    """A value as both dialects read it."""
    if isinstance(value, str | int | float | bool | None):
        return json.dumps(value, ensure_ascii=False)[:60]
    return f"a {type(value).__name__}"
