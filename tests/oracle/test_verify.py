"""`rtdmd verify` prints its table and fails loudly."""

import argparse

import pytest

from rtdmd.commands import verify
from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.oracle import statements


def arguments(*text):
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return parser.parse_args(list(text))


def test_table_has_a_row_for_each_statement(capsys):
    verify.run(arguments("--only", "T3", "T5"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["T3", "T3", "T5", "T5"]
    assert lines[-1].startswith("4 of 4 statements hold (float64, cpu)")


def test_a_failing_statement_is_an_error_that_names_it(monkeypatch, capsys):
    wrong = statements.Statement("T5", "one is below zero", "1 < 0", lambda setting: 1.0, statements.Bound(0.5))
    monkeypatch.setattr(statements, "STATEMENTS", (wrong,))
    with pytest.raises(RtdmdError, match="one is below zero") as caught:
        verify.run(arguments())
    assert not isinstance(caught.value, UserError)
    assert "FAIL" in capsys.readouterr().out


def test_an_unknown_device_is_the_users_error():
    with pytest.raises(UserError, match="--device nowhere"):
        verify.run(arguments("--device", "nowhere"))


def test_names_are_those_of_the_statements():
    assert {statement.name for statement in statements.STATEMENTS} <= set(verify.NAMES)
