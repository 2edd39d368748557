"""JSON and text that others wrote: one line for whatever is wrong, with file, place and remedy."""

import os
import re
from pathlib import Path

import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, read_json, read_jsonl
from rtdmd.common.parsing import first_line, read_text


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON (Expecting value, column 1)"),
        (b'{"a": 1', "not JSON (Expecting ',' delimiter, column 8)"),
        (b'{\n"a": 1\n"b": 2}', "not JSON (Expecting ',' delimiter, line 3, column 1)"),
        (b'{"a": 1e999}', "1e999 is beyond the largest number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": ' + b"7" * 5000 + b"}", "not JSON that can be read (an integer of thousands of digits)"),
        (b"[" * 100_000, "not JSON that can be read (nested too deep)"),
        (b'{"a": "caf\xe9"}', "not UTF-8 (byte 11)"),
        (b"[1]", "a JSON object is expected, got list"),
        (b"null", "a JSON object is expected, got NoneType"),
    ],
)
def test_what_is_no_json_object_is_one_line(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_json(path, "`rtdmd evaluate` makes it")
    assert str(caught.value) == f"{path}: {says}; `rtdmd evaluate` makes it"
    (tmp_path / "x.jsonl").write_bytes(b'{"id": 1}\n\n' + data.replace(b"\n", b" ") + b"\n{}\n")
    if data:
        with pytest.raises(UserError, match=r"x\.jsonl:3: ") as caught:
            read_jsonl(tmp_path / "x.jsonl")
        assert "\n" not in str(caught.value)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, says in (
        ("pipe", "not a regular file; mend it"),
        (".", "not a regular file; mend it"),
        ("nowhere", "no such file; mend it"),
        ("loop", r"cannot be read \(Too many levels of symbolic links\); mend it"),
        ("n" * 300, r"cannot be read \(File name too long\); mend it"),
        ("nu\0ll", r"cannot be read \((stat: )?embedded null (byte|character in path)\); mend it"),
    ):
        with pytest.raises(UserError, match=says):
            read_text(tmp_path / name, "mend it")
    (tmp_path / "latin").write_bytes(b"a\nb\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"latin:3: not UTF-8 \(byte 8 of the file\); mend it"):
        read_text(tmp_path / "latin", "mend it")


def test_lines_end_alike_on_every_system(tmp_path: Path) -> None:
    (tmp_path / "dos").write_bytes("a\r\nσ\rb\n".encode())
    assert read_text(tmp_path / "dos", "") == "a\nσ\nb\n"


def test_a_weights_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for content in (None, b"", b"\x08\0\0\0\0\0\0\0{}"):
        path = tmp_path / "w.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(
            UserError, match=r"w\.safetensors: not a complete safetensors file \(.+\); make the file again"
        ):
            load_tensors(path)


@pytest.mark.parametrize(
    ("error", "line"), [(EOFError(), "EOFError"), (ValueError("\n a\nb"), "a"), (OSError(2, "gone"), "[Errno 2] gone")]
)
def test_an_error_without_words_is_named_by_its_class(error: Exception, line: str) -> None:
    assert first_line(error) == line


# Where text is read without rtdmd.common.parsing: files that the same program wrote and whose hash it has checked, a
# script that runs on its own, headers that are read with all that can be wrong with them caught in the same function.
OWN_TEXT = {
    "rtdmd/commands/recover.py",
    "rtdmd/common/files.py",
    "rtdmd/common/model_files.py",
    "rtdmd/common/parsing.py",
    "rtdmd/prompts/tables.py",
    "rtdmd/publish/gate_check.py",
    "rtdmd/rehearse/folder.py",
    "rtdmd/rehearse/table.py",
    "rtdmd/train/engine/checkpoint.py",
    "rtdmd/train/engine/journal.py",
}


def test_foreign_text_is_read_in_one_place() -> None:
    """Elsewhere it is read by read_json, parse_json, parse_yaml and read_table, which know what can be wrong with it;
    and an error that has no words has no first line."""
    ways = re.compile(r"json\.loads?\(|yaml\.(safe_)?load|csv\.(DictReader|reader)|splitlines\(\)\[0\]")
    found = {path.as_posix() for path in Path("rtdmd").rglob("*.py") if ways.search(path.read_text(encoding="utf-8"))}
    assert found - OWN_TEXT == set()
