"""Files are written whole, and the same content gives the same bytes."""

import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from rtdmd.common.errors import NonFiniteError, UserError
from rtdmd.common.files import (
    IGNORED,
    json_text,
    load_tensors,
    read_json,
    read_jsonl,
    save_tensors,
    sha256_bytes,
    sha256_file,
    sha256_tree,
    tree_files,
    write_atomic,
    write_json,
    write_jsonl,
)
from rtdmd.common.lazy_tensors import KINDS, LazyTensors, layouts_of

REPOSITORY = Path(__file__).parents[2]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"b": 1, "a": [0.5]})
    with pytest.raises(NonFiniteError, match=r"^figures\.json: b\.c\[1\] is nan, which JSON cannot hold; the file was"):
        write_json(path, {"a": 1.0, "b": {"c": [0.0, float("nan")]}})
    with pytest.raises(NonFiniteError, match=r"^figures\.json:2: score is -inf, which JSON cannot hold; the file was"):
        write_jsonl(path, [{"score": 1.0}, {"score": float("-inf")}])
    with pytest.raises(TypeError):
        write_atomic(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == '{\n  "a": [\n    0.5\n  ],\n  "b": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


def test_hashes(tmp_path: Path) -> None:
    write_atomic(tmp_path / "tree" / "a.txt", "abc")
    assert (
        sha256_file(tmp_path / "tree" / "a.txt") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert sha256_file(tmp_path / "tree" / "a.txt") == sha256_bytes(b"abc") == sha256_tree(tmp_path / "tree" / "a.txt")
    before = sha256_tree(tmp_path / "tree")
    write_atomic(tmp_path / "tree" / "__pycache__" / "a.pyc", b"byte code")
    (tmp_path / "tree" / "a.txt").touch()
    assert sha256_tree(tmp_path / "tree") == before
    (tmp_path / "tree" / "a.txt").rename(tmp_path / "tree" / "b.txt")
    assert sha256_tree(tmp_path / "tree") != before


STRAY = (
    *("__pycache__/a.pyc", "a.pyc", ".snakemake_timestamp", ".partial-x/a.txt", ".rtdmd/a.txt", ".venv/a.txt"),
    *(".#a.py", "#a.py#", "a.py~", ".a.py.swp", ".a.py.swo", ".a.py.un~", ".~lock.a.txt#", ".a.py.kate-swp"),
    *(".goutputstream-AB12", ".DS_Store", "._a.py", "Thumbs.db", "desktop.ini", ".directory", ".nfs0000000001"),
    *(".fuse_hidden0001", ".idea/a.xml", ".vscode/a.json", ".ipynb_checkpoints/a.ipynb", ".git/config"),
    *(".mypy_cache/a.json", ".ruff_cache/a", ".pytest_cache/a", ".hg/a"),
)
CONTENT = ("a.py", "sub/b.txt", ".gitattributes", "swp", "a.swp.py", "DS_Store", "x~y.txt", "#a.py", "dot.#a.py")


def stray(folder: Path) -> None:
    """What editors, desktops and tools leave in a folder and in one below it; emacs' lock is a link to nowhere."""
    for name in STRAY:
        for place in (folder / name, folder / "sub" / name):
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.name.startswith(".#"):
                place.symlink_to("somebody@somewhere.1234:5678")
            else:
                place.write_text("not content")


def test_files_of_editors_and_desktops_are_no_content_for_us_and_for_dvc(tmp_path: Path) -> None:
    from dvc.repo import Repo

    root = tmp_path / ".venv" / "checkout"  # what lies above does not count
    for name in CONTENT:
        write_atomic(root / "code" / name, name)
    before = sha256_tree(root / "code")
    stray(root / "code")
    assert sha256_tree(root / "code") == before
    Repo.init(str(root), no_scm=True).close()
    write_atomic(root / ".dvcignore", (REPOSITORY / ".dvcignore").read_bytes())
    with Repo(str(root)) as repo:
        seen = {
            Path(path).relative_to(root / "code").as_posix() for path in repo.dvcignore.find(repo.fs, f"{root}/code")
        }
    assert seen == {path.relative_to(root / "code").as_posix() for path in tree_files(root / "code")} == set(CONTENT)


def test_dvcignore_has_our_own_list() -> None:
    lines = (REPOSITORY / ".dvcignore").read_text().splitlines()
    patterns = [line.removeprefix("\\") for line in lines if line and not line.startswith("# ")]
    assert {*patterns, ".git", ".hg", ".dvc"} == set(IGNORED)  # DVC leaves those three out by itself


def test_jsonl_round_trip_and_its_errors(tmp_path: Path) -> None:
    rows = [{"id": 1, "prompt": "a σ"}, {"id": 2, "prompt": "line\u2028separator"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows
    write_atomic(tmp_path / "rows.jsonl", '{"id": 1}\n\n[2]\n')
    with pytest.raises(UserError, match=r"rows.jsonl:3: a JSON object is expected, got list"):
        read_jsonl(tmp_path / "rows.jsonl")
    write_atomic(tmp_path / "rows.jsonl", '{"id": \n')
    with pytest.raises(UserError, match=r"rows.jsonl:1: not JSON"):
        read_jsonl(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match=r"rows.jsonl: not JSON"):
        read_json(tmp_path / "rows.jsonl")


def test_tensors_have_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    one, two = torch.arange(6.0).reshape(2, 3), torch.ones(2, dtype=torch.bfloat16)
    save_tensors({"b": one.T, "a": two}, tmp_path / "1", {"y": "2", "x": "1"})
    save_tensors({"a": two, "b": one.T.contiguous()}, tmp_path / "2", {"x": "1", "y": "2"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    tensors, metadata = load_tensors(tmp_path / "1")
    assert metadata == {"x": "1", "y": "2"}
    assert tensors["a"].dtype == torch.bfloat16
    assert torch.equal(tensors["b"], one.T)


def test_tensors_have_the_bytes_that_the_library_writes(tmp_path: Path) -> None:
    """Of every kind of number, with a scalar, an empty one and names that JSON escapes."""
    tensors = {f"{dtype}": torch.ones(2, 3).to(dtype) for dtype in KINDS.values()}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), 'a "quoted" σ\n\x7f': torch.arange(3)}
    save_tensors(tensors, tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == save(tensors)
    save_tensors(tensors, tmp_path / "told", {"only": "one, so that its order is no chance: σ"})
    assert (tmp_path / "told").read_bytes() == save(
        tensors, metadata={"only": "one, so that its order is no chance: σ"}
    )
    made = LazyTensors(layouts_of(tensors), tensors.__getitem__)
    save_tensors(made, tmp_path / "lazy")
    assert (tmp_path / "lazy").read_bytes() == (tmp_path / "ours").read_bytes()


def test_json_is_canonical() -> None:
    assert json_text({"b": 1, "a": 2}) == json_text({"a": 2, "b": 1})
