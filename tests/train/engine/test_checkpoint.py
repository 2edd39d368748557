"""Training state: what is saved comes back bit for bit, and a damaged or half-written checkpoint is never used."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch

from rtdmd.common.errors import NonFiniteError
from rtdmd.train.engine import checkpoint
from rtdmd.train.engine.checkpoint import Snapshot
from tests.fuzz import dice, rounds


def snapshot(step: int) -> Snapshot:
    tensors = {
        "one": {"a": torch.full((2, 3), float(step)), "b": torch.tensor(step)},
        "two": {"c": torch.randn(4, generator=torch.Generator().manual_seed(step))},
        "empty": {},
    }
    return Snapshot(step, tensors, f'{{"iteration": {step}, "loss": {0.1 * step}}}\n')


def equal(one: Snapshot | None, other: Snapshot) -> bool:
    """Equal step, tensors (bits and types) and journal."""
    assert one is not None
    assert one.tensors.keys() == other.tensors.keys()
    for name, group in other.tensors.items():
        assert one.tensors[name].keys() == group.keys()
        assert all(
            torch.equal(one.tensors[name][k], v) and one.tensors[name][k].dtype == v.dtype for k, v in group.items()
        )
    return (one.step, one.journal) == (other.step, other.journal)


def test_round_trip(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    checkpoint.save(tmp_path, snapshot(10))
    assert equal(checkpoint.load(tmp_path), snapshot(10))


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        checkpoint.save(tmp_path, snapshot(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-00000015", "step-00000100"]
    assert (tmp_path / "LATEST").read_text() == "step-00000100\n"
    assert equal(checkpoint.load(tmp_path), snapshot(100))
    checkpoint.save(tmp_path, snapshot(101), keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-00000101"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Snapshot(5, {"one": {"a": torch.zeros(1)}}))
    checkpoint.save(tmp_path, snapshot(5))
    assert equal(checkpoint.load(tmp_path), snapshot(5))


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_skipped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    for step in (5, 10):
        checkpoint.save(tmp_path, snapshot(step))
    newest = tmp_path / "step-00000010"
    file, manifest = newest / "two.safetensors", newest / "manifest.json"
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-3])
    elif damage == "missing":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
    else:
        manifest.unlink()
    assert equal(checkpoint.load(tmp_path), snapshot(5))
    reasons = {
        "manifest": "manifest.json is not the one that was written (manifest.sha256 has another hash)",
        "no manifest": "manifest.json or manifest.sha256 is missing",
    }
    reason = reasons.get(damage, "two.safetensors is missing or damaged")
    assert capsys.readouterr().err == f"{newest}: skipped, {reason}\n"
    checkpoint.save(tmp_path, snapshot(10))  # training goes on and writes it again
    assert equal(checkpoint.load(tmp_path), snapshot(10))
    assert capsys.readouterr().err == ""


def test_every_flipped_bit_of_the_step_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It gave other bytes and a journal of "1 2 3 4 1 2 3 4", or a traceback."""
    for step in (5, 10):
        checkpoint.save(tmp_path, snapshot(step))
    manifest = tmp_path / "step-00000010/manifest.json"
    data = manifest.read_bytes()
    first = 8 * data.index(b'"step": 10')
    for bit in range(first, first + 80):
        manifest.write_bytes(flipped(data, bit))
        assert equal(checkpoint.load(tmp_path), snapshot(5))
    assert capsys.readouterr().err.count("step-00000010: skipped, manifest.json is not the one that was written") == 80


def test_fuzz_flipped_bits_anywhere_in_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One bit of any file: the checkpoint before is used, with one line."""
    draw = dice("checkpoint bits")
    for step in (5, 10):
        checkpoint.save(tmp_path, snapshot(step))
    files = sorted((tmp_path / "step-00000010").iterdir())
    assert {file.name for file in files} >= {"manifest.json", "manifest.sha256", "journal.jsonl", "one.safetensors"}
    for _ in range(rounds(150)):
        file = draw.choice(files)
        data = file.read_bytes()
        bit = draw.randrange(8 * len(data))
        file.write_bytes(flipped(data, bit))
        assert equal(checkpoint.load(tmp_path), snapshot(5)), (file.name, bit)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "step-00000010: skipped, " in said
        file.write_bytes(data)
    assert equal(checkpoint.load(tmp_path), snapshot(10))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Shapes that are equal, a folder that somebody copied or renamed: it is skipped, kept, and takes no place."""
    mine, other = tmp_path / "train_acdmd-1111", tmp_path / "train_acdmd-2222"
    checkpoint.save(mine, snapshot(5))
    checkpoint.save(other, snapshot(10))
    shutil.copytree(other / "step-00000010", mine / "step-00000010")
    assert equal(checkpoint.load(mine), snapshot(5))
    expected = f"{mine}/step-00000010: skipped, it belongs to another run, train_acdmd-2222\n"
    assert capsys.readouterr().err == expected
    checkpoint.save(mine, snapshot(6), keep=1)
    assert sorted(path.name for path in mine.glob("step-*")) == ["step-00000006", "step-00000010"]
    (mine / "step-00000006").rename(mine / "step-00000007")
    assert checkpoint.load(mine, quiet=True) is None
    assert capsys.readouterr().err == ""
    assert checkpoint.load(mine) is None
    assert "step-00000007: skipped, it was written as step-00000006\n" in capsys.readouterr().err


def test_a_file_that_no_manifest_names_is_not_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, snapshot(5))
    (tmp_path / "step-00000005/more.safetensors").write_bytes(b"\0" * 8)
    assert equal(checkpoint.load(tmp_path), snapshot(5))


def test_what_only_looks_like_a_checkpoint_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file or a folder of another name, a folder where a file should be, nine digits after eight."""
    checkpoint.save(tmp_path, snapshot(99999999))
    checkpoint.save(tmp_path, snapshot(100000000))
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-00000003").write_text("a file")
    assert equal(checkpoint.load(tmp_path), snapshot(100000000))
    shutil.rmtree(tmp_path / "step-100000000")
    (tmp_path / "step-100000000/manifest.json").mkdir(parents=True)
    assert equal(checkpoint.load(tmp_path), snapshot(99999999))
    assert capsys.readouterr().err.endswith("step-100000000: skipped, manifest.json or manifest.sha256 is missing\n")


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """keep: 1, the newest of a former run damaged: a good one was deleted as soon as it was written."""
    checkpoint.save(tmp_path, snapshot(100), keep=1)
    (tmp_path / "step-00000100/one.safetensors").write_bytes(b"")
    capsys.readouterr()
    checkpoint.save(tmp_path, snapshot(10), keep=1)
    assert equal(checkpoint.load(tmp_path), snapshot(10))
    told = f"{tmp_path}/step-00000100: removed, one.safetensors is missing or damaged\n"
    assert capsys.readouterr().err == told
    checkpoint.save(tmp_path, snapshot(20))
    (tmp_path / "step-00000020/manifest.json").write_text("{}")  # while the run goes on
    checkpoint.save(tmp_path, snapshot(30))
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000010", "step-00000030"]
    checkpoint.save(tmp_path, snapshot(40))
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000030", "step-00000040"]


def test_fuzz_whatever_is_damaged_the_newest_good_one_is_there(tmp_path: Path) -> None:
    """Saves, flips, losses and restarts in any order: no restart goes back behind the last good checkpoint."""
    draw = dice("retention")
    for turn in range(rounds(4)):
        folder = tmp_path / f"run-{turn}"
        folder.mkdir()
        keep, step = draw.choice((1, 2, 3)), 0
        good: set[int] = set()
        for _ in range(12):
            if draw.random() < 0.6 or not good:
                step += draw.randint(1, 3)
                checkpoint.save(folder, snapshot(step), keep)
                good = set(sorted(good | {step})[-keep:])
            else:
                hit = draw.choice(sorted(good))
                file = draw.choice(sorted((folder / f"step-{hit:08d}").iterdir()))
                data = file.read_bytes()
                file.write_bytes(flipped(data, draw.randrange(8 * len(data))))
                good.discard(hit)
            found = checkpoint.load(folder, quiet=True)
            assert (found.step if found else 0) == max(good, default=0)
            step = max(good, default=0)  # a restart goes on from there


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_is_written(tmp_path: Path, bad: float) -> None:
    checkpoint.save(tmp_path, snapshot(5))
    broken = snapshot(10)
    broken.tensors["two"]["c"][1] = bad
    with pytest.raises(NonFiniteError, match=r"^two: c has 1 non-finite values of 4$"):
        checkpoint.save(tmp_path, broken)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-00000005"]


def test_a_link_is_removed_and_what_it_points_at_stays(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("data")
    mine.mkdir()
    for name in (".step-00000005.partial", "step-00000005", ".cache"):
        (mine / name).symlink_to(other, target_is_directory=True)
    checkpoint.remove_partial(mine)
    (mine / ".step-00000005.partial").symlink_to(other, target_is_directory=True)
    checkpoint.save(mine, snapshot(5))
    assert equal(checkpoint.load(mine), snapshot(5)) and not (mine / "step-00000005").is_symlink()
    assert (other / "precious").read_text() == "data"


def test_where_all_are_damaged_training_starts_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path, snapshot(5))
    (tmp_path / "step-00000005/journal.jsonl").write_text("{}")
    assert checkpoint.load(tmp_path) is None
    assert "step-00000005: skipped, journal.jsonl is missing or damaged" in capsys.readouterr().err


def test_a_folder_that_a_kill_left_half_written_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever call of a save is the last one, the checkpoint before it is what loading finds."""
    checkpoint.save(tmp_path, snapshot(5))
    for name, calls_of_a_save in (("save_tensors", 3), ("write_json", 1), ("write_atomic", 3), ("fsync_path", 2)):
        for survived in range(calls_of_a_save):
            calls = iter(range(100))
            real = getattr(checkpoint, name)

            def dying(*arguments: object, real=real, calls=calls, survived=survived) -> None:  # type: ignore[no-untyped-def]
                if next(calls) == survived:
                    raise KeyboardInterrupt
                real(*arguments)

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(checkpoint, name, dying)
                checkpoint.save(tmp_path, snapshot(10))
            found = checkpoint.load(tmp_path)
            renamed = (name, survived) in (("fsync_path", 1), ("write_atomic", 2))  # LATEST was not written
            assert equal(found, snapshot(10 if renamed else 5)), (name, survived)
            shutil.rmtree(tmp_path / "step-00000010", ignore_errors=True)
    checkpoint.save(tmp_path, snapshot(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-00000005", "step-00000010"]


def test_a_good_checkpoint_stays_until_the_one_in_its_place_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, snapshot(5))

    def dying(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "write_json", dying)
        checkpoint.save(tmp_path, snapshot(5))
    assert equal(checkpoint.load(tmp_path), snapshot(5))


def test_what_a_kill_left_half_done_is_swept_away(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, snapshot(5))
    (tmp_path / ".step-00000007.partial").mkdir()  # of a save that a signal asked for: it may not come again
    (tmp_path / ".step-00000007.partial/one.safetensors").write_bytes(b"ha")
    (tmp_path / ".LATEST.abc").write_text("st")
    checkpoint.remove_partial(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-00000005"]
    assert equal(checkpoint.load(tmp_path), snapshot(5))


def test_an_optimizer_put_back_takes_the_same_next_step(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3, 2, generator=generator)), torch.nn.Parameter(torch.randn(4))]
    optimizer = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1)
    gradients = [[torch.randn(w.shape, generator=generator) for w in weights] for _ in range(4)]

    def step(owned: list[torch.nn.Parameter], which: torch.optim.Optimizer, i: int) -> None:
        for weight, gradient in zip(owned, gradients[i], strict=True):
            weight.grad = gradient.clone()
        which.step()

    for i in range(3):
        step(weights, optimizer, i)
    moments = checkpoint.optimizer_tensors(optimizer)
    assert sorted(moments) == [f"{i}.{name}" for i in (0, 1) for name in ("exp_avg", "exp_avg_sq", "step")]
    saved = Snapshot(3, {"weights": checkpoint.indexed(weights), "optimizer": moments})
    checkpoint.save(tmp_path, saved)
    others = [torch.nn.Parameter(torch.zeros_like(w)) for w in copy.deepcopy(weights)]
    again = torch.optim.AdamW(others, lr=0.01, weight_decay=0.1)
    found = checkpoint.load(tmp_path)
    assert found is not None
    checkpoint.copy_indexed(others, found.tensors["weights"])
    checkpoint.restore_optimizer(again, found.tensors["optimizer"])
    step(weights, optimizer, 3)
    step(others, again, 3)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    after, expected = checkpoint.optimizer_tensors(again), checkpoint.optimizer_tensors(optimizer)
    assert all(torch.equal(after[name], expected[name]) for name in expected)


def test_an_optimizer_that_never_stepped_comes_back_empty(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    checkpoint.save(tmp_path, Snapshot(1, {"optimizer": checkpoint.optimizer_tensors(optimizer)}))
    found = checkpoint.load(tmp_path)
    assert found is not None and found.tensors["optimizer"] == {}
    checkpoint.restore_optimizer(optimizer, found.tensors["optimizer"])
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.9 - 0.001, 0.9 - 0.001], abs=1e-3)
