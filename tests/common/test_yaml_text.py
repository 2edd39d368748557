"""YAML with two readers: what this package and DVC read differently is refused, by key and line."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from dvc.utils.serialize import loads_yaml

from rtdmd.common.errors import UserError
from rtdmd.common.yaml_text import parse_yaml, parse_yaml_11


def read(text: str) -> Any:
    return parse_yaml(f"x:\n  a: {text}\n", "p.yaml")["x"]["a"]


@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
    [
        ("050", "40", "50"),
        ("-050", "-40", "-50"),
        ("0o17", '"0o17"', "15"),
        ("08", '"08"', "8"),
        ("yes", "true", '"yes"'),
        ("no", "false", '"no"'),
        ("On", "true", '"On"'),
        ("off", "false", '"off"'),
        ("1:30", "90", '"1:30"'),
        ("1:30.5", "90.5", '"1:30.5"'),
    ],
)
def test_what_two_readers_read_differently_is_refused(text: str, ours: str, theirs: str) -> None:
    with pytest.raises(UserError) as caught:
        read(text)
    says = f"{text} is {ours} to YAML 1.1 and {theirs} to DVC (YAML 1.2); write {ours} or {theirs}"
    assert str(caught.value) == f"p.yaml:2: x.a: {says}"
    with pytest.raises(UserError, match=r"^p\.yaml:1: x\[1\]\.a: "):
        parse_yaml(f"x: [1, {{a: {text}}}]\n", "p.yaml")
    for written in (ours, theirs):  # the remedies are read alike
        assert read(written) == loads_yaml(written)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-05", 3e-5),  # as `dvc exp run -S x=3e-5` writes it
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("1.5e3", 1500.0),
        ("-2e+2", -200.0),
        ("1_000", 1000),
        (".inf", math.inf),
        ("1e999", math.inf),
        ("~", None),
        ("0x1F", 31),
        ("'050'", "050"),
        ('"yes"', "yes"),
        ("y", "y"),
        ("1e", "1e"),
        ("e5", "e5"),
        (".5e3", ".5e3"),
    ],
)
def test_what_both_read_alike_is_read(text: str, value: Any) -> None:
    found = read(text)
    assert (type(found), found) == (type(value), value)
    assert loads_yaml(f"a: {text}")["a"] == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2024-02-30", "p.yaml:2: not YAML: '2024-02-30' is no timestamp (day is out of range for month)"),
        ("{[b]: 1}", "p.yaml:2: not YAML: a key is text, and this one is a list"),
        ("{{b: 1}: 1}", "p.yaml:2: not YAML: a key is text, and this one is a dict"),
        ("{1: 2}", "p.yaml:2: not YAML: a key is text, and this one is 1"),
        ("{yes: 2}", "p.yaml:2: not YAML: a key is text, and this one is true"),
        ("{b: 1, b: 2}", "p.yaml:2: not YAML: the key 'b' is given twice"),
        ("0x" + "f" * 17, "p.yaml:2: not YAML: an integer of more than 64 bits"),
        ('"\\0"', "p.yaml:2: not YAML: the control character '\\x00' in a text"),
        ('"\\ud800"', "p.yaml:2: not YAML: the control character '\\ud800' in a text"),
        ("!!bool maybe", "p.yaml:2: not YAML: 'maybe' is no bool ('maybe')"),
        ("!!set {b}", "p.yaml:2: not YAML: set is none of text, number, truth value, null, date, list and mapping"),
        ("!!python/name:os.system x", "p.yaml:2: not YAML: os.system is none of text, number, truth value, null, date"),
        ("\t1", "p.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("&b [*b]", "p.yaml: not YAML that can be read: nested too deep"),
        ("[" * 3000, "p.yaml: not YAML that can be read: nested too deep"),
    ],
)
def test_every_other_fault_is_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        read(text)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


def test_an_integer_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(UserError, match=r"^p\.yaml:2: not YAML: '9{40}' is no int \(Exceeds the limit"):
        read("9" * 5000)


def test_a_few_aliases_that_stand_for_billions_of_values_are_refused() -> None:
    names = "abcdefghij"
    lines = ["a: &a [" + ", ".join("x" * 9) + "]"]
    for before, name in pairwise(names):
        lines.append(f"{name}: &{name} [" + ", ".join([f"*{before}"] * 9) + "]")
    with pytest.raises(UserError, match=r"^p\.yaml: its aliases stand for more than 100000 values"):
        parse_yaml("\n".join(lines), "p.yaml")
    assert parse_yaml("a: &a [1, 2]\nb: *a\n", "p.yaml") == {"a": [1, 2], "b": [1, 2]}


def test_what_one_program_wrote_and_one_reads_needs_no_second_reader() -> None:
    assert parse_yaml_11("a: 1:30\nb: 3e-05\n", "dvc.lock") == {"a": 90, "b": 3e-5}
    with pytest.raises(UserError, match=r"^dvc\.lock:1: not YAML: .*; `git checkout dvc\.lock`$"):
        parse_yaml_11("a: [", "dvc.lock", "`git checkout dvc.lock`")
