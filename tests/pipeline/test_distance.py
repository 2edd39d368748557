"""How far apart two versions of an output are, in figures that can be computed by hand."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rtdmd.common.files import save_tensors, write_atomic, write_json
from rtdmd.pipeline.distance import allowed, distance


def test_tensors(tmp_path: Path) -> None:
    save_tensors({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}, tmp_path / "1.safetensors")
    save_tensors({"a": torch.tensor([3.0, 0.5]), "b": torch.tensor([4.0])}, tmp_path / "2.safetensors")
    save_tensors({"a": torch.tensor([3.0])}, tmp_path / "3.safetensors")
    assert (
        distance(tmp_path / "1.safetensors", tmp_path / "2.safetensors").words
        == "max difference 5.0e-01, relative norm 1.0e-01"
    )
    assert distance(tmp_path / "1.safetensors", tmp_path / "3.safetensors").words == "other tensors"


def test_tensors_of_norm_0_have_no_relative_norm(tmp_path: Path) -> None:
    """A fresh LoRA's B, or a file without a value."""
    save_tensors({"a": torch.zeros(2), "b": torch.zeros(0)}, tmp_path / "1.safetensors")
    save_tensors({"a": torch.tensor([3.0, 4.0]), "b": torch.zeros(0)}, tmp_path / "2.safetensors")
    save_tensors({"b": torch.zeros(0)}, tmp_path / "3.safetensors")
    words = distance(tmp_path / "1.safetensors", tmp_path / "2.safetensors").words
    assert words == "max difference 4.0e+00, norm 5.0e+00, and the record's is 0"
    words = distance(tmp_path / "3.safetensors", tmp_path / "3.safetensors").words
    assert words == "max difference 0.0e+00, norm 0.0e+00, and the record's is 0"


def test_pictures(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    pixels[0, 0, 0] = 6
    Image.fromarray(pixels).save(tmp_path / "2.png")
    Image.fromarray(pixels[:1]).save(tmp_path / "3.png")
    assert distance(tmp_path / "1.png", tmp_path / "2.png").words == "pixels: max difference 6 of 255, mean 0.5"
    assert distance(tmp_path / "1.png", tmp_path / "3.png").words == "another size"
    for archive, members in (("1.zip", "11"), ("2.zip", "12"), ("3.zip", "1")):
        with zipfile.ZipFile(tmp_path / archive, "w") as file:
            for name, member in zip("ab", members, strict=False):
                file.write(tmp_path / f"{member}.png", name)
    assert distance(tmp_path / "1.zip", tmp_path / "2.zip").words == "pixels: max difference 6 of 255, mean 0.25"
    assert distance(tmp_path / "1.zip", tmp_path / "3.zip").words == "other pictures"


def test_tables_and_records(tmp_path: Path) -> None:
    write_atomic(tmp_path / "1.csv", "step,loss,note\n1,0.5,a\n2,0.25,b\n")
    write_atomic(tmp_path / "2.csv", "step,loss,note\n1,0.5,a\n2,0.5,c\n")
    assert (
        distance(tmp_path / "1.csv", tmp_path / "2.csv").words
        == "max difference 2.5e-01 (row 1 loss), 1 other values differ"
    )
    write_json(tmp_path / "1.json", {"inputs": {"x": "ab"}, "sizes": [1, 2]})
    write_json(tmp_path / "2.json", {"inputs": {"x": "cd"}, "sizes": [1, 2]})
    assert distance(tmp_path / "1.json", tmp_path / "2.json").words == "1 other values differ"
    write_atomic(tmp_path / "1.md", "a")
    assert distance(tmp_path / "1.md", tmp_path / "1.md").words == "other text"


def test_scores_are_judged_by_the_interval_of_their_difference(tmp_path: Path) -> None:
    """Half-widths 0.03 and 0.04 give 0.05 for one score; for two scores at once it is wider by z(0.9875) / z(0.975):
    0.05 * 2.241403 / 1.959964 = 0.05718."""

    def write(name: str, *means: float) -> Path:
        (tmp_path / name).mkdir()
        scores = {f"s{i}": {"mean": mean, "ci95": 0.03 if name == "was" else 0.04} for i, mean in enumerate(means)}
        models = {"resolution": 36, "student": {**scores, "steps": 4, "bare": {"mean": 9, "ci95": None}}}
        write_json(tmp_path / name / "metrics.json", {"order": ["heldout"], "suites": {"heldout": models}})
        return tmp_path / name / "metrics.json"

    was = write("was", 0.5, 0.5)
    assert allowed({"ci95": 0.03}, {"ci95": 0.04}) == pytest.approx(0.05 + 1e-6, rel=1e-12)
    near, far = write("near", 0.5571, 0.5), write("far", 0.5573, 0.5)
    assert distance(was, near).within is True
    assert distance(was, far).within is False
    assert distance(was, far).words == (
        "heldout student s0: 0.5 recorded, 0.5573 here, allowed ± 0.057; the furthest of 2 scores"
    )
    assert distance(was, write("none")).within is False
