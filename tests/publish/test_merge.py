"""Merged weights: the sum in float32, cast once, and nothing skipped."""

import json

import pytest
import torch

from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, save_tensors
from rtdmd.publish.adapter import A, Adapter, B
from rtdmd.publish.merge import CONFIG, MERGED, full_weights, merged_weights, write_merged


def _base(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"m.weight": (6, 5), "m.bias": (6,), "n.weight": (3, 4)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def _adapter(module: str = "m", out: int = 6) -> Adapter:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        module + A: torch.randn(2, 5, generator=generator),
        module + B: torch.randn(out, 2, generator=generator),
    }
    return Adapter(tensors, rank=2, alpha=4.0)


def test_the_adapted_weight_and_no_other_moves() -> None:
    base, adapter = _base(), _adapter()
    merged = merged_weights(base, adapter, torch.float32)
    expected = base["m.weight"].double() + 2 * (adapter.tensors["m" + B].double() @ adapter.tensors["m" + A].double())
    assert torch.allclose(merged["m.weight"].double(), expected, atol=1e-6)
    assert torch.equal(merged["m.bias"], base["m.bias"])
    assert torch.equal(merged["n.weight"], base["n.weight"])


def test_a_half_precision_base_is_rounded_once() -> None:
    """Merging in bfloat16 rounds the update to the weight's grid twice; ours is the float32 sum's own rounding."""
    base, adapter = _base(torch.bfloat16), _adapter()
    merged = merged_weights(base, adapter, torch.bfloat16)["m.weight"]
    exact = base["m.weight"].float() + adapter.delta("m")
    assert torch.equal(merged, exact.bfloat16())
    twice = base["m.weight"] + (2 * adapter.tensors["m" + B].bfloat16()) @ adapter.tensors["m" + A].bfloat16()
    assert not torch.equal(merged, twice)


def test_what_does_not_fit_is_refused_and_not_skipped() -> None:
    with pytest.raises(UserError, match="other is not a layer of the base model"):
        merged_weights(_base(), _adapter("other"), torch.float32)
    with pytest.raises(UserError, match=r"m is made for a weight \(7, 5\), the base has \(6, 5\)"):
        merged_weights(_base(), _adapter(out=7), torch.float32)


def test_a_student_of_all_weights_must_be_the_bases_transformer(tmp_path) -> None:
    base = _base()
    save_tensors({name: value + 1 for name, value in base.items()}, tmp_path / "full.safetensors")
    found = full_weights(tmp_path / "full.safetensors", base, torch.bfloat16)
    assert torch.equal(found["m.bias"], (base["m.bias"] + 1).bfloat16())
    save_tensors({"m.weight": base["m.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(
        UserError, match=r"part\.safetensors is not the base's transformer .* \(2 tensors differ, first"
    ):
        full_weights(tmp_path / "part.safetensors", base, torch.float32)
    save_tensors({name: value + torch.nan for name, value in base.items()}, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"nan\.safetensors: m\.bias holds .* not finite; make the folder again"):
        full_weights(tmp_path / "nan.safetensors", base, torch.float32, "make the folder again")


def test_the_file_is_the_same_every_time(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "X", "patch_size": 3}))
    for name in ("a", "b"):
        write_merged(_base(), tmp_path / "config.json", tmp_path / name, {"z": "1", "b": "2"})
    assert (tmp_path / "a" / MERGED).read_bytes() == (tmp_path / "b" / MERGED).read_bytes()
    tensors, header = load_tensors(tmp_path / "a" / MERGED)
    assert header == {"format": "pt", "z": "1", "b": "2"}
    assert set(tensors) == set(_base())
    assert json.loads((tmp_path / "a" / CONFIG).read_text()) == {"_class_name": "X", "patch_size": 3}
