"""Training state: what is saved comes back bit for bit, and a damaged or half-written checkpoint is never used."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from rtdmd.train.engine import checkpoint
from rtdmd.train.engine.checkpoint import Snapshot


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
    reason = "its manifest cannot be read" if "manifest" in damage else "two.safetensors is missing or damaged"
    assert f"{newest}: skipped, {reason}" in capsys.readouterr().err
    checkpoint.save(tmp_path, snapshot(10))  # training goes on and writes it again
    assert equal(checkpoint.load(tmp_path), snapshot(10))
    assert capsys.readouterr().err == ""


def test_where_all_are_damaged_training_starts_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path, snapshot(5))
    (tmp_path / "step-00000005/journal.jsonl").write_text("{}")
    assert checkpoint.load(tmp_path) is None
    assert "step-00000005: skipped, journal.jsonl is missing or damaged" in capsys.readouterr().err


def test_a_folder_that_a_kill_left_half_written_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever call of a save is the last one, the checkpoint before it is what loading finds."""
    checkpoint.save(tmp_path, snapshot(5))
    for name, calls_of_a_save in (("save_tensors", 3), ("write_json", 1), ("write_atomic", 2), ("fsync_path", 2)):
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
            renamed = name in ("fsync_path", "write_atomic") and survived == 1  # renamed, LATEST was not written
            assert equal(found, snapshot(10 if renamed else 5)), (name, survived)
    checkpoint.save(tmp_path, snapshot(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-00000005", "step-00000010"]


def test_what_a_kill_left_half_done_is_swept_away(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, snapshot(5))
    (tmp_path / ".step-00000007.partial").mkdir()  # of a save that a signal asked for: it may not come again
    (tmp_path / ".step-00000007.partial/one.safetensors").write_bytes(b"ha")
    (tmp_path / ".LATEST.abc").write_text("st")
    checkpoint.sweep(tmp_path)
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
