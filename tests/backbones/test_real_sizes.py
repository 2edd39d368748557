"""The five real transformers on the meta device: their size, our adapter's size and place, and a forward's shapes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.backbones.real import CONFIGS, backbone, conditioning, transformer

GIB = 2**30
DOUBLE = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
# name: (parameters, adapted layers of kind attention, adapter parameters at rank 32)
SIZES = {
    "sd3m": (2_028_328_000, 191, 18_776_064),
    "sd35m": (2_243_171_520, 191, 18_776_064),
    "flux1-dev": (11_901_408_320, 266, 52_297_728),
    "flux2-klein-4b": (3_875_544_576, 80, 37_355_520),
    "flux2-klein-9b": (9_078_581_248, 112, 63_963_136),
}


def expected_targets(name: str) -> Counter[str]:
    """How often each kind of layer carries an adapter."""
    config = CONFIGS[name]
    double, single = config["num_layers"], config.get("num_single_layers", 0)
    counts = Counter(dict.fromkeys((f"transformer_blocks.attn.{part}" for part in DOUBLE), double))
    if name.startswith("sd3"):
        counts["transformer_blocks.attn.to_add_out"] -= 1  # the last block has no text output
        return counts
    fused = ("to_q", "to_k", "to_v") if name == "flux1-dev" else ("to_qkv_mlp_proj", "to_out")
    return counts | Counter(dict.fromkeys((f"single_transformer_blocks.attn.{part}" for part in fused), single))


@pytest.mark.parametrize("name", SIZES)
def test_parameters_and_adapters_are_those_of_the_published_model(name: str) -> None:
    parameters, layers, trainable = SIZES[name]
    model = transformer(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    targets = backbone(name, 512).lora_targets("attention")
    assert len(targets) == len(set(targets)) == layers
    kinds = Counter(".".join(part for i, part in enumerate(t.split(".")) if i != 1) for t in targets)
    assert kinds == expected_targets(name)
    shapes = [model.get_submodule(target).weight.shape for target in targets]
    assert sum(32 * (outer + inner) for outer, inner in shapes) == trainable


@pytest.mark.parametrize("resolution", [512, 1024])
@pytest.mark.parametrize("name", SIZES)
def test_one_forward_has_the_latents_shape(name: str, resolution: int) -> None:
    ours = backbone(name, resolution)
    channels, side = (128, resolution // 16) if name.startswith("flux2") else (16, resolution // 8)
    assert ours.latent_shape() == (channels, side, side)
    x = torch.empty(2, channels, side, side, device="meta")
    guidance = {"guidance": 3.5, "null": conditioning(name, 1)}
    with torch.no_grad():
        v = ours.velocity(ours.transformer, x, torch.empty(2, device="meta"), conditioning(name, 2), **guidance)
    assert v.shape == x.shape and v.dtype == torch.float32


def test_a_bf16_copy_is_as_large_as_the_table_says() -> None:
    sizes = {name: round(2 * parameters / GIB, 1) for name, (parameters, _, _) in SIZES.items()}
    assert sizes == {"sd3m": 3.8, "sd35m": 4.2, "flux1-dev": 22.2, "flux2-klein-4b": 7.2, "flux2-klein-9b": 16.9}


@pytest.mark.parametrize("name", SIZES)
def test_peft_adapts_exactly_the_targets_at_real_size(name: str) -> None:
    """From twenty names on PEFT shortens the list to suffixes before it matches; they must not reach another layer."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = backbone(name, 512).lora_targets("attention")
    model = transformer.__wrapped__(name)  # another one: the adapters stay on it
    inject_adapter_in_model(LoraConfig(r=32, target_modules=list(targets)), model, low_cpu_mem_usage=True)
    adapted = {part: set() for part in ("lora_A", "lora_B")}
    for parameter, _ in model.named_parameters():
        for part, names in adapted.items():
            if f".{part}." in parameter:
                names.add(parameter.split(f".{part}.")[0])
    assert adapted["lora_A"] == adapted["lora_B"] == set(targets)
    trainable = sum(p.numel() for parameter, p in model.named_parameters() if ".lora_" in parameter)
    assert trainable == SIZES[name][2]
