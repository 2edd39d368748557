"""Which files of a repository a loader would take in place of the published weights."""

import pytest

from rtdmd.publish.upload_shadows import shadows

PUBLISHED = ("README.md", "pytorch_lora_weights.safetensors", "scheduler/scheduler_config.json")
MERGED = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    "path",
    [
        f"{MERGED}.index.json",
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "transformer/diffusion_pytorch_model.bin",
        "transformer/diffusion_pytorch_model.bin.index.json",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/flax_model.msgpack",
        "transformer/config.json",
        "pytorch_lora_weights.bin",
        "adapter_model.safetensors",
        "adapter_config.json",
        "model.ckpt",
        MERGED,
    ],
)
def test_weights_and_what_describes_them(path: str) -> None:
    assert shadows([*PUBLISHED, path], PUBLISHED) == [path]


@pytest.mark.parametrize(
    "path",
    [
        ".gitattributes",
        "LICENSE.md",
        "model_index.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors.index.json",
        "old/transformer/diffusion_pytorch_model.safetensors",
        "tokenizer/vocab.json",
        "examples/picture.png",
    ],
)
def test_what_nothing_loads_for_them_stays(path: str) -> None:
    assert shadows([*PUBLISHED, path], PUBLISHED) == []


def test_the_published_files_themselves_stay() -> None:
    published = (*PUBLISHED, MERGED, "transformer/config.json")
    assert shadows(published, published) == []
