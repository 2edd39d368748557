"""What base a checkpoint stands on: its own word, its layers, or the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rtdmd.common.errors import UserError
from rtdmd.config import ModelParams, preset
from rtdmd.plan.published import TEACHERS
from rtdmd.publish.adapter import A, Adapter, B
from rtdmd.publish.known_bases import PUBLIC_CODE, check_base, layout_of

PRESETS = {
    "sd3m": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd35m": "stabilityai/stable-diffusion-3.5-medium",
    "flux1-dev": "black-forest-labs/FLUX.1-dev",
    "flux2-klein-4b": "black-forest-labs/FLUX.2-klein-4B",
    "flux2-klein-9b": "black-forest-labs/FLUX.2-klein-9B",
}
FILE = Path("generator_ema.pt")


def checkpoint(layout: tuple[int, int, int], config: dict | None = None) -> Adapter:
    joint, single, width = layout
    modules = [f"transformer_blocks.{i}.attn.to_q" for i in range(joint)]
    modules += [f"single_transformer_blocks.{i}.attn.to_q" for i in range(single)]
    tensors = {}
    for name in modules:
        tensors[name + A], tensors[name + B] = torch.ones(1, width), torch.ones(2, 1)
    return Adapter(tensors, 1, 2.0, config)


def model(name: str, **changes: str | None) -> ModelParams:
    return preset(name).model.model_copy(update=changes)


def layout_of_preset(name: str) -> tuple[int, int, int]:
    config = TEACHERS[preset(name).model.teacher]["transformer"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return config["num_layers"], config.get("num_single_layers", 0), width


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_has_the_layers_of_the_published_models(name: str) -> None:
    layout = layout_of_preset(name)
    assert layout_of(checkpoint(layout)) == layout
    assert PRESETS[name] in PUBLIC_CODE[layout]


@pytest.mark.parametrize("name", ["flux2-klein-4b", "flux2-klein-9b"])
def test_a_public_flux2_checkpoint_is_not_put_on_the_base_model(name: str) -> None:
    """The presets' klein-base has the same layers, and the public code's students stand on the distilled klein."""
    ours = preset(name).model
    adapters = {"train_acdmd": checkpoint(layout_of_preset(name))}
    with pytest.raises(UserError) as refused:
        check_base(ours, [FILE], adapters)
    assert f"{FILE}: its base is {PRESETS[name]}, but model.teacher is {ours.teacher}" in str(refused.value)
    assert f"model.teacher: {PRESETS[name]} and model.revision to the commit that you trust" in str(refused.value)
    assert f"model_info('{PRESETS[name]}').sha" in str(refused.value)
    check_base(ours.of_student(), [FILE], adapters)  # which is where the presets' students stand


def test_flux1_knows_its_base() -> None:
    check_base(preset("flux1-dev").model, [FILE], {"train_acdmd": checkpoint((19, 38, 3072))})


@pytest.mark.parametrize("name", ["sd3m", "sd35m"])
def test_two_bases_of_the_same_layers_are_asked_for(name: str) -> None:
    with pytest.raises(UserError, match=r"medium-diffusers or .*3\.5-medium; name its base with --base FOLDER"):
        check_base(preset(name).model, [FILE], {"train_acdmd": checkpoint((24, 0, 1536))})


def test_a_base_that_nothing_tells_is_asked_for() -> None:
    ways = r"name its base with --base FOLDER, or with --base data/world/teacher if that is it"
    with pytest.raises(UserError, match=rf"does not say what its base is; {ways}"):
        check_base(preset("world").model, [FILE], {"train_acdmd": checkpoint((2, 0, 16))})


def test_the_files_own_word_goes_first() -> None:
    config = {"base_model_name_or_path": "black-forest-labs/FLUX.2-klein-base-4B"}
    adapters = {"train_acdmd": checkpoint((5, 20, 3072), config)}
    check_base(preset("flux2-klein-4b").model, [FILE], adapters)
    with pytest.raises(UserError, match=r"its base is black-forest-labs/FLUX\.2-klein-base-4B, but model\.teacher"):
        check_base(preset("world").model, [FILE], adapters)
