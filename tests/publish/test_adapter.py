"""One reader for every kind of adapter file: what each tells is used, and each is refused for the same things."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.common.errors import UserError
from rtdmd.common.files import save_tensors
from rtdmd.config import preset
from rtdmd.publish.adapter import A, Adapter, B, check_belongs, compose, read_adapter, write_lora

RANK = 2
ROADS = ("stage", "diffusers", "peft folder", "peft in transformer", "peft file", "public code")
TELLS = ROADS[:-1]  # the public code's state dict tells neither alpha nor anything else


def factors(modules: tuple[str, ...] = ("m", "n"), rank: int = RANK) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for module in modules:
        tensors[module + A] = torch.randn(rank, 3, generator=generator)
        tensors[module + B] = torch.randn(4, rank, generator=generator)
    return tensors


def written(road: str, folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """An adapter as each kind of writer leaves it; what to give the reader."""
    tensors = factors() if tensors is None else tensors
    if road == "stage":
        header = {"rank": str(config.get("r", RANK)), "alpha": str(config.get("lora_alpha")), "stage": "train_rtdmd"}
        save_tensors(tensors, folder / "generator.safetensors", header if "lora_alpha" in config else {})
        return folder / "generator.safetensors"
    if road == "diffusers":
        named = {f"transformer.{key}": value for key, value in tensors.items()}
        told = {f"transformer.{key}": value for key, value in config.items()}
        save_tensors(named, folder / PUBLISHED, {"format": "pt", "lora_adapter_metadata": json.dumps(told)})
        return folder
    if road == "public code":
        torch.save(
            {f"module.{k.replace('.weight', '.default.weight')}": v for k, v in tensors.items()}, folder / "x.pt"
        )
        return folder / "x.pt"
    place = folder / "transformer" if "transformer" in road else folder
    place.mkdir(exist_ok=True)
    named = {f"base_model.model.{key}": value for key, value in tensors.items()}
    save_tensors(named, place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place / "adapter_model.safetensors" if road == "peft file" else folder


@pytest.mark.parametrize("road", ROADS)
def test_every_road_gives_the_same_adapter(road: str, tmp_path: Path) -> None:
    config = {"r": RANK, "lora_alpha": 6, "use_rslora": False, "alpha_pattern": {}, "bias": "none"}
    path = written(road, tmp_path, config)
    found = read_adapter(path, None if road in TELLS else 6.0)
    assert (found.rank, found.alpha, found.modules()) == (RANK, 6.0, ["m", "n"])
    assert all(torch.equal(found.tensors[key], value) for key, value in factors().items())


@pytest.mark.parametrize("road", TELLS)
def test_an_alpha_that_is_told_is_not_told_otherwise(road: str, tmp_path: Path) -> None:
    path = written(road, tmp_path, {"r": RANK, "lora_alpha": 6})
    assert read_adapter(path, 6.0).alpha == 6.0
    with pytest.raises(UserError, match=r"--alpha 8: .* itself says 6; leave --alpha out"):
        read_adapter(path, 8.0)


@pytest.mark.parametrize("road", ROADS)
def test_an_alpha_that_nobody_tells_is_asked_for(road: str, tmp_path: Path) -> None:
    path = written(road, tmp_path, {})
    with pytest.raises(
        UserError, match=r"does not record alpha; give it with --alpha \(the public code's is 64, at rank 32\)"
    ):
        read_adapter(path)
    assert read_adapter(path, 64.0).alpha == 64.0


@pytest.mark.parametrize("road", ["diffusers", "peft folder", "peft in transformer", "peft file"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rslora", True),
        ("init_lora_weights", "pissa_niter_16"),
        ("use_dora", True),
        ("alpha_pattern", {"m": 2}),
        ("rank_pattern", {"m": 4}),
        ("lora_bias", True),
        ("bias", "all"),
        ("modules_to_save", ["norm"]),
        ("layers_to_transform", [0]),
        ("exclude_modules", ["n"]),
        ("peft_type", "LOHA"),
    ],
)
def test_what_is_no_plain_lora_is_refused_on_every_road(road: str, key: str, value: Any, tmp_path: Path) -> None:
    path = written(road, tmp_path, {"r": RANK, "lora_alpha": 6, key: value})
    with pytest.raises(UserError, match=f": {key} is set; only plain LoRA of one rank can be taken"):
        read_adapter(path)


@pytest.mark.parametrize("road", TELLS)
@pytest.mark.parametrize(("alpha", "shown"), [(0, "0"), (-2, "-2"), ("six", "six"), ("nan", "nan")])
def test_an_alpha_that_is_none_is_refused(road: str, alpha: Any, shown: str, tmp_path: Path) -> None:
    path = written(road, tmp_path, {"r": RANK, "lora_alpha": alpha})
    with pytest.raises(UserError, match=rf"lora_alpha is '?{shown.strip(chr(39))}(\.0)?'?, not a number above 0; copy"):
        read_adapter(path)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("alpha", [-1.0, 0.0, math.inf, math.nan])
def test_a_wrong_alpha_of_the_user_is_the_users_fault(road: str, alpha: float, tmp_path: Path) -> None:
    path = written(road, tmp_path, {"r": RANK})
    with pytest.raises(UserError, match=rf"^--alpha {alpha:g}: a number above 0 is expected"):
        read_adapter(path, alpha)


@pytest.mark.parametrize("road", TELLS)
def test_a_rank_that_is_not_the_tensors_is_refused(road: str, tmp_path: Path) -> None:
    path = written(road, tmp_path, {"r": 4, "lora_alpha": 6})
    with pytest.raises(UserError, match=r"rank 4(\.0)? in its settings, but its tensors have 2"):
        read_adapter(path)


class Surprise:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple:
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            {"a.lora_A.default.weight": Surprise()},
            r"x\.pt: not a file of plain tensors: it is damaged, or holds objects that would run code, and these are"
            r" never loaded; copy or download it again$",
        ),
        ({"a.lora_A.default.weight": 1}, "a state dict of tensors is expected"),
        ({}, "holds no tensors"),
        ({"a.weight": torch.ones(2, 2)}, r"a\.weight is not a LoRA factor"),
        ({"a.lora_A.default.weight": torch.ones(2, 3)}, "a has no matching pair of LoRA factors"),
        ({"a.lora_A.x.weight": torch.ones(2, 3), "a.lora_A.y.weight": torch.ones(2, 3)}, "two tensors for a"),
        (
            {"a.lora_A.default.weight": torch.ones(2, 3), "a.lora_B.default.weight": torch.full((4, 2), torch.nan)},
            r"a\.lora_B\.default\.weight holds numbers that are not finite",
        ),
        (
            {f"{m}.lora_{f}.weight": torch.ones(r, r) for m, r in (("a", 2), ("b", 3)) for f in "AB"},
            r"ranks \[2, 3\]",
        ),
    ],
)
def test_what_is_no_adapter_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict, reason: str
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=reason):
        read_adapter(tmp_path / "x.pt", 64.0)
    assert "ran" not in capsys.readouterr().out


def test_a_flipped_bit_of_a_checkpoint_is_seen(tmp_path: Path) -> None:
    """Wherever it is: the file is refused, or gives the numbers that were saved (the bit was in unused space)."""
    torch.save(factors(), tmp_path / "x.pt")
    whole, places, refused = (tmp_path / "x.pt").read_bytes(), random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[places.randrange(len(whole))] ^= 1 << places.randrange(8)
        (tmp_path / "x.pt").write_bytes(damaged)
        try:
            found = read_adapter(tmp_path / "x.pt", 4.0)
        except UserError:
            refused += 1
        else:
            assert all(torch.equal(found.tensors[key], value) for key, value in factors().items())
    assert refused > 50


def test_a_flipped_bit_in_the_numbers_is_named(tmp_path: Path) -> None:
    torch.save(factors(), tmp_path / "x.pt")
    damaged = bytearray((tmp_path / "x.pt").read_bytes())
    start = damaged.find(factors()["m" + A].numpy().tobytes())
    damaged[start] ^= 1
    (tmp_path / "x.pt").write_bytes(damaged)
    with pytest.raises(UserError, match=r"x\.pt: x/data/\d in it is damaged .*; copy or download the file again"):
        read_adapter(tmp_path / "x.pt", 4.0)
    (tmp_path / "x.pt").write_bytes(damaged[: len(damaged) // 2])
    with pytest.raises(UserError, match=r"not a complete file of torch\.save"):
        read_adapter(tmp_path / "x.pt", 4.0)


def _of_base(kind: str, tiny_teacher: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    backbone = load_backbone(preset("smoke", {"model": {"teacher": str(tiny_teacher)}}).model, vae=False)
    tensors = {}
    for name in backbone.lora_targets(kind):  # type: ignore[arg-type]
        outer, inner = backbone.transformer.get_submodule(name).weight.shape
        tensors[name + A], tensors[name + B] = torch.ones(RANK, inner), torch.ones(outer, RANK)
    return backbone, tensors


def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value for key, value in tensors.items() if "transformer_blocks.0." in key}


def test_an_adapter_with_a_part_of_its_tensors_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    """By the layers that its own configuration names or, where it has none, by those that a student can have."""
    for kind in ("attention", "attention_mlp", "all"):
        backbone, whole = _of_base(kind, tiny_teacher)
        check_belongs(Adapter(whole, RANK, 4.0), backbone, "x")
        with pytest.raises(UserError, match=r"x: \d+ layers, which are none of attention \(\d+\), .*; is a part of"):
            check_belongs(Adapter(half(whole), RANK, 4.0), backbone, "x")
    backbone, whole = _of_base("attention", tiny_teacher)
    write_lora(Adapter(whole, RANK, 4.0), tmp_path / PUBLISHED)
    check_belongs(read_adapter(tmp_path), backbone, "x")
    for targets in (sorted({key.removesuffix(A) for key in whole if key.endswith(A)}), ["to_q", "to_k"], r".*\.to_q"):
        config = {"target_modules": targets}
        check_belongs(Adapter(whole, RANK, 4.0, config), backbone, "x")
        with pytest.raises(UserError, match=r"no tensors for \d+ layers that its target_modules name, first tr"):
            check_belongs(Adapter(half(whole), RANK, 4.0, config), backbone, "x")


def _adapter(rank: int, alpha: float, modules: dict[str, tuple[int, int]], seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outer, inner) in modules.items():
        tensors[name + A] = torch.randn(rank, inner, generator=generator)
        tensors[name + B] = torch.randn(outer, rank, generator=generator)
    return Adapter(tensors, rank, alpha)


def test_the_composed_adapter_adds_exactly_the_sum() -> None:
    modules = {"blocks.0.to_q": (7, 5), "blocks.0.to_out.0": (5, 9)}
    parts = [_adapter(4, 8, modules, 0), _adapter(6, 3, modules, 1)]
    whole = compose(parts)
    assert (whole.rank, whole.alpha) == (10, 10.0)
    for name in modules:
        expected = sum(part.delta(name).double() for part in parts)
        assert whole.tensors[name + A].shape[0] == 10
        assert torch.allclose(whole.delta(name).double(), expected, atol=1e-5)
        x = torch.randn(3, modules[name][1], dtype=torch.float64)
        b, a = (whole.tensors[name + end].double() for end in (B, A))
        separate = [
            p.alpha / p.rank * (x @ p.tensors[name + A].double().T @ p.tensors[name + B].double().T) for p in parts
        ]
        assert torch.allclose(x @ a.T @ b.T, sum(separate), atol=1e-5)


def test_powers_of_two_compose_without_any_rounding() -> None:
    """With alpha / rank = 2, as published, the composed factors are the given ones and their doubles, bit for bit."""
    parts = [_adapter(4, 8, {"m": (6, 5)}, 0), _adapter(4, 8, {"m": (6, 5)}, 1)]
    whole = compose(parts)
    assert torch.equal(whole.tensors["m" + A], torch.cat([p.tensors["m" + A] for p in parts]))
    assert torch.equal(whole.tensors["m" + B], torch.cat([2 * p.tensors["m" + B] for p in parts], dim=1))


def test_a_module_that_one_adapter_lacks_is_that_of_the_other() -> None:
    parts = [_adapter(2, 2, {"m": (3, 4)}, 0), _adapter(3, 6, {"m": (3, 4), "n": (5, 2)}, 1)]
    whole = compose(parts)
    assert whole.tensors["n" + A].shape == (5, 2)
    assert torch.allclose(whole.delta("n"), parts[1].delta("n"))
