"""What the house's style asks of the code (CONTRIBUTING.md) and ruff has no rule for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = sorted(path for folder in ("rtdmd", "tools") for path in (REPOSITORY / folder).rglob("*.py"))
PRE_TRAINING = REPOSITORY / "tools" / "world"
"""Its rules depend on the code's times, and hours of training follow an edit: mended when the world is trained anew."""
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FOLDS = ("all", "any", "join", "max", "min", "sum", "sum_in_order")
"""Calls that make one value of a generator, which reads as one word."""


def packed(tree: ast.Module) -> Iterator[int]:
    """Lines on which several values are assigned to as many targets, and none of them needs the others' former one."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Tuple)
            and isinstance(node.targets[0], ast.Tuple)
        ):
            targets = {ast.unparse(target) for target in node.targets[0].elts}
            if not any(ast.unparse(part) in targets for part in ast.walk(node.value) if isinstance(part, ast.expr)):
                yield node.lineno


def nested(tree: ast.Module) -> Iterator[int]:
    """Lines of comprehensions that have another one inside."""
    folded: set[ast.expr] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in FOLDS:
            folded |= set(node.args)
    for node in ast.walk(tree):
        inner = (part for part in ast.walk(node) if isinstance(part, COMPREHENSIONS) and part is not node)
        if isinstance(node, COMPREHENSIONS) and any(part not in folded for part in inner):
            yield node.lineno


def splatted(tree: ast.Module) -> Iterator[int]:
    """Lines of calls whose arguments are unpacked from a tuple or a list that is written there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            unpacked = [argument.value for argument in node.args if isinstance(argument, ast.Starred)]
            if any(isinstance(value, ast.Tuple | ast.List) for value in unpacked):
                yield node.lineno


def pointing(tree: ast.Module) -> Iterator[int]:
    """Lines of functions whose docstring only says where another one is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (ast.get_docstring(node) or "").lower().startswith("see the protocol"):
            yield node.lineno


RULES = {
    "one statement per line": packed,
    "no comprehension inside another": nested,
    "no unpacking of a tuple into arguments": splatted,
    "no docstring that points to the protocol": pointing,
}
BAD = {
    "one statement per line": "def f():\n    one, two = [], 0",
    "no comprehension inside another": "x = 1\ny = [[0 for _ in row] for row in rows]",
    "no unpacking of a tuple into arguments": "x = 1\nf(*(a, b), *(c, d))",
    "no docstring that points to the protocol": 'x = 1\ndef f():\n    """See the protocol."""',
}
GOOD = {
    "one statement per line": "one, two = two, one + two\na, b = pair",
    "no comprehension inside another": "y = [sum(value for value in row) for row in rows]",
    "no unpacking of a tuple into arguments": "f(*values)\nx = [*values, 1]",
    "no docstring that points to the protocol": 'def f():\n    """Velocity of a role."""',
}


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {
        path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES if not path.is_relative_to(PRE_TRAINING)
    }


@pytest.mark.parametrize("rule", RULES)
def test_the_code_keeps_the_rule(rule: str, trees: dict[Path, ast.Module]) -> None:
    assert list(RULES[rule](ast.parse(BAD[rule]))) == [2] and not list(RULES[rule](ast.parse(GOOD[rule])))
    found = []
    for path, tree in trees.items():
        found += [f"{path.relative_to(REPOSITORY)}:{line}" for line in RULES[rule](tree)]
    assert found == [], rule


def test_the_formatter_has_the_last_word() -> None:
    """Without exceptions: what it lays out badly is written otherwise."""
    files = [*FILES, *sorted((REPOSITORY / "tests").rglob("*.py"))]
    assert [path for path in files if f"# {'fmt'}:" in path.read_text(encoding="utf-8")] == []
