"""Rows on disk: the library's own bytes, gone on with after a kill, memory-mapped, and without what is always zero."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rtdmd.backbones import Conditioning
from rtdmd.common.files import save_tensors
from rtdmd.conditioning.text_store import Layout, NotZeroError, RowWriter, StoredRows

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def rows(count: int, seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    hidden, pooled = (torch.randn(count, *shape, generator=generator) for shape in ((5, 6), (3,)))
    return Conditioning({"pooled": pooled, "hidden": hidden})


def padded(count: int) -> Conditioning:
    """Tokens 0 and 1 of width 4, token 2 whole, tokens 3 and 4 zero: SD3's CLIP, one token of T5, and nothing."""
    cond = rows(count)
    cond.tensors["hidden"][:, :2, 4:] = 0
    cond.tensors["hidden"][:, 3:] = 0
    return cond


def write(folder: Path, cond: Conditioning, layout: Layout, names: list[str], batch: int) -> RowWriter:
    writer = RowWriter.resume(folder, names, len(cond))
    if writer is None:
        writer = RowWriter(folder, names, len(cond), layout)
        writer.begin()
    while writer.done < len(cond):
        writer.write(cond.index(slice(writer.done, writer.done + batch)))
    return writer


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_file_has_the_bytes_that_the_library_writes(tmp_path: Path, dtype: str) -> None:
    cond = rows(7)
    writer = write(tmp_path, cond, Layout.of(cond, dtype, unpadded=False), ["e.safetensors"], 3)
    expected = {name: tensor.to(DTYPES[dtype]) for name, tensor in cond.tensors.items()}
    save_tensors(expected, tmp_path / "ours")
    save_file(expected, tmp_path / "library")
    written = (tmp_path / "e.safetensors").read_bytes()
    assert written == (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()
    assert len(written) > 7 * writer.layout.row_bytes() == 7 * 33 * DTYPES[dtype].itemsize


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["a", "b", "c", "d", "e"]])
@pytest.mark.parametrize("unpadded", [False, True])
def test_rows_come_back_from_any_number_of_files(tmp_path: Path, names: list[str], unpadded: bool) -> None:
    cond = padded(7)
    writer = write(tmp_path, cond, Layout.of(cond, "float32", unpadded), names, 3)
    stored = StoredRows([tmp_path / name for name in names], Layout.parse(_json(writer.layout)))
    assert len(stored) == 7
    wanted = [6, 0, 3, 3, 1]
    found = stored.index(wanted)
    for name, tensor in cond.index(wanted).tensors.items():
        assert torch.equal(found.tensors[name], tensor)
    for name, (first, last) in zip(names, writer.spans(), strict=True):
        assert {len(tensor) for tensor in load_file(tmp_path / name).values()} == {last - first}


def _json(layout: Layout) -> dict:
    import json
    from dataclasses import asdict

    return json.loads(json.dumps(asdict(layout)))


def test_what_is_zero_in_every_row_is_left_out() -> None:
    layout = Layout.of(padded(7), "bfloat16", unpadded=True)
    assert layout.blocks == {"hidden": [(0, 2, 4), (2, 3, 6)]}
    assert layout.stored() == {"hidden.0": (2, 4), "hidden.1": (1, 6), "pooled": (3,)}
    assert layout.row_bytes() == 2 * (8 + 6 + 3)
    assert Layout.of(rows(7), "float32", unpadded=True).blocks == {}


def test_a_number_where_a_zero_was_promised_is_an_error(tmp_path: Path) -> None:
    layout = Layout.of(padded(7), "float32", unpadded=True)
    cond = padded(7)
    cond.tensors["hidden"][5, 4, 5] = 1e-30
    with pytest.raises(NotZeroError, match=r"hidden: not zero beside the blocks \[\(0, 2, 4\), \(2, 3, 6\)\]"):
        write(tmp_path, cond, layout, ["e"], 3)


def test_rows_of_another_shape_are_refused(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path, ["e"], 4, Layout.of(rows(2), "float32", unpadded=False))
    writer.begin()
    other = Conditioning({"hidden": torch.zeros(2, 4, 6), "pooled": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"hidden: rows of \(4, 6\), but the first had \(5, 6\)"):
        writer.write(other)


def test_a_killed_writer_is_gone_on_with_and_gives_the_same_bytes(tmp_path: Path) -> None:
    cond, names = rows(8), ["a", "b"]
    layout = Layout.of(cond, "bfloat16", unpadded=False)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    write(tmp_path / "whole", cond, layout, names, 3)
    writer = RowWriter(tmp_path / "killed", names, 8, layout)
    writer.begin()
    writer.write(cond.index(slice(0, 3)))
    with (tmp_path / "killed" / "a").open("r+b") as file:  # half of row 3 was under way
        file.seek(-6, 2)
        file.write(b"x" * 6)
    resumed = RowWriter.resume(tmp_path / "killed", names, 8)
    assert resumed is not None and resumed.done == 3
    write(tmp_path / "killed", cond, layout, names, 3)
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_only_the_same_work_is_gone_on_with(tmp_path: Path) -> None:
    cond = rows(8)
    writer = RowWriter(tmp_path, ["a"], 8, Layout.of(cond, "float32", unpadded=False))
    writer.begin()
    writer.write(cond.index(slice(0, 3)))
    assert RowWriter.resume(tmp_path, ["a"], 9) is None
    assert RowWriter.resume(tmp_path, ["b"], 8) is None
    with pytest.raises(ValueError, match="3 of 8 rows are written"):
        writer.move([tmp_path / "out"])
    (tmp_path / "a").write_bytes(b"")
    assert RowWriter.resume(tmp_path, ["a"], 8) is None


def test_reading_maps_the_file_and_takes_only_the_rows_asked_for(tmp_path: Path) -> None:
    cond = Conditioning({"hidden": torch.zeros(2000, 64, 128)})  # 64 MiB
    write(tmp_path, cond, Layout.of(cond, "float32", unpadded=False), ["e"], 1000)
    del cond
    before = _resident()
    stored = StoredRows([tmp_path / "e"], Layout("float32", {"hidden": (64, 128)}, {}))
    found = stored.index([0, 999, 1999])
    assert found.tensors["hidden"].shape == (3, 64, 128)
    assert _resident() - before < 16 * 2**20


def _resident() -> int:
    """Bytes of this process in memory."""
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
