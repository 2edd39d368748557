"""The model card: what the Hub reads from it, and what a person needs."""

import ast

import pytest
import yaml

from rtdmd.config import preset
from rtdmd.publish.card import Published, licence_of, model_card, snippet

METRICS = {
    name: {
        "images": 900,
        "network_evaluations": cost,
        "strict": {"mean": mean, "ci95": 0.02, "ci95_prompts": 0.03},
        "per_tag": {"strict": {"counting": {"mean": mean, "ci95": 0.04, "ci95_prompts": None}}},
    }
    for name, cost, mean in (("teacher", 56, 0.94), ("train_acdmd", 4, 0.79), ("train_rtdmd", 4, 0.9))
}


def _found(changes=None) -> Published:
    params = preset("world", changes)
    record = {"git_commit": "c" * 40, "settings": params.model_dump(mode="json"), "settings_sha256": "d" * 64}
    return Published(params.model, [1.0, 0.9, 0.75, 0.5, 0.0], True, ["text_encoder_3"], 64, METRICS, record)


def _metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_metadata_of_the_embedded_world():
    metadata = _metadata(model_card(_found()))
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "diffusers"
    assert metadata["pipeline_tag"] == "text-to-image"
    assert "base_model" not in metadata  # a folder is no repository of the Hub
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "strict", "value": 0.9, "name": "Strict (900 images)"}]


def test_an_adapter_of_a_hub_model_inherits_its_licence():
    hub = {"model": {"teacher": "stabilityai/stable-diffusion-3.5-medium", "revision": "a" * 40, "resolution": 512}}
    found = _found(hub)
    metadata = _metadata(model_card(found))
    assert metadata["base_model"] == "stabilityai/stable-diffusion-3.5-medium"
    assert metadata["base_model_relation"] == "adapter"
    assert (metadata["license"], metadata["license_name"]) == ("other", "stabilityai-ai-community")
    assert f'revision="{"a" * 40}"' in snippet(found)
    assert licence_of(preset("world", {"model": {"teacher": "elsewhere/x/y"}}).model)[0] == "other"


def test_the_text_names_levels_scores_and_origin():
    card = model_card(_found())
    for text in (
        "σ = 1, 0.9, 0.75, 0.5, 0",
        "| Stage two (RTDMD) | 4 | 0.900 ± 0.020 |",
        "rewards: clipscore, world_verifier",
        "c" * 40,
        "d" * 64,
        f"{preset('world').train_acdmd.iterations} iterations of 48",
    ):
        assert text in card


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_snippet_is_python(dtype):
    code = snippet(_found({"model": {"dtype": dtype}}))
    ast.parse(code)
    assert f"dtype=torch.{dtype}, text_encoder_3=None)" in code
