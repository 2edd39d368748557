"""The model card: what the Hub reads from it, and what a person needs."""

import ast
import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from rtdmd.common.errors import UserError
from rtdmd.config import preset
from rtdmd.publish.base import BaseModel, base_model
from rtdmd.publish.card import Published, eval_results, licence_of, model_card
from rtdmd.publish.gate import blocks_of

METRICS = {
    name: {
        "images": 900,
        "network_evaluations": cost,
        "strict": {"mean": mean, "ci95": 0.02, "ci95_prompts": 0.03},
        "pickscore": {"mean": mean / 2, "ci95": None, "ci95_prompts": None},
        "frechet": 0.031,
        "diversity": None,
        "per_tag": {
            "strict": {"counting": {"mean": mean, "ci95": 0.04, "ci95_prompts": None}},
            "pickscore": {"counting": {"mean": mean / 2, "ci95": None, "ci95_prompts": None}},
        },
    }
    for name, cost, mean in (("teacher", 56, 0.94), ("train_acdmd", 4, 0.79), ("train_rtdmd", 4, 0.9))
}
LEVELS = {
    "0": {"mean": 0.88, "minus_trained": {"mean": -0.02, "ci95": 0.011, "ci95_prompts": None}},
    "1": {"mean": 0.91, "minus_trained": {"mean": 0.01, "ci95": 0.012, "ci95_prompts": None}},
}
METRICS["etas"] = {
    level: {
        "strict": {"mean": found["mean"], "ci95": 0.02, "ci95_prompts": None},
        "minus_trained": {"strict": found["minus_trained"]},
    }
    for level, found in LEVELS.items()
}


def _suite(found: dict[str, Any], name: str = "heldout", resolution: int = 36) -> dict[str, Any]:
    """metrics.json of one suite, for the card."""
    own = {"prompts": 12, "resolution": resolution, "trained_resolution": 36} | found
    return {"order": [name], "suites": {name: own}}


BASE = BaseModel(
    Path("teacher"), "StableDiffusion3Pipeline", "SD3Transformer2DModel", ("text_encoder_3",), ("text_encoder_3",)
)
HUB = {"model": {"teacher": "stabilityai/stable-diffusion-3.5-medium", "revision": "a" * 40, "resolution": 512}}


def _found(changes=None, **other) -> Published:
    params = preset("world", changes)
    told = {
        "forms": ("lora", "merged"),
        "rank": 64,
        "settings": params.model_dump(mode="json") | {"run.seed": params.run.seed},
        "metrics": _suite(METRICS),
        "settings_sha256": "d" * 64,
    } | other
    return Published(
        model=params.model,
        base=BASE,
        sigmas=[1.0, 0.9, 0.75, 0.5, 0.0],
        stochastic=True,
        prompt='two "red" circles',
        folder="results/publish",
        **told,
    )


def plain(card: str) -> str:
    """The card with ordinary spaces around its ±."""
    return card.replace("\u00a0", " ")


def _metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_metadata_of_the_embedded_world() -> None:
    metadata = _metadata(model_card(_found(datasets=["owner/prompts"])))
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "diffusers"
    assert metadata["pipeline_tag"] == "text-to-image"
    assert metadata["datasets"] == ["owner/prompts"]
    assert {"lora", "few-step", "sd3"} < set(metadata["tags"])
    assert metadata["widget"] == [{"text": 'two "red" circles', "output": {"url": "widget.png"}}]
    assert metadata["model-index"][0]["name"] == "Embedded world, 4 steps, RTDMD"
    assert "base_model" not in metadata  # a folder is no repository of the Hub


def test_figures_with_intervals_training_rewards_apart() -> None:
    """strict is what the training reward world_verifier is made of; pickscore and Fréchet distance were not trained."""
    trained, held_out = _metadata(model_card(_found()))["model-index"][0]["results"]
    assert trained["dataset"]["name"] == "Held-out prompts (heldout), training rewards"
    (strict,) = trained["metrics"]
    assert strict == {
        "type": "strict",
        "value": 0.9,
        "name": "Strict ± 0.020 (95 %), 900 images",
        "args": {"ci95": 0.02, "images": 900},
    }
    assert held_out["dataset"]["config"] == "held-out-rewards"
    assert [(one["type"], one["value"]) for one in held_out["metrics"]] == [("pickscore", 0.45), ("frechet", 0.031)]
    card = plain(model_card(_found()))
    first, second = card.index("Training rewards (clipscore"), card.index("Held-out: never a training reward")
    assert first < card.index("| Stage two (RTDMD) | 4 | 0.900 ± 0.020 |") < second
    assert second < card.index("| Stage two (RTDMD) | 4 | 0.450 | 0.031 |")


def test_what_is_made_of_a_hub_model_inherits_its_licence() -> None:
    adapter, merged = _found(HUB), _found(HUB, forms=("merged",), rank=None)
    metadata = _metadata(model_card(adapter))
    assert metadata["base_model"] == "stabilityai/stable-diffusion-3.5-medium"
    assert metadata["base_model_relation"] == "adapter"
    assert _metadata(model_card(merged))["base_model_relation"] == "finetune"
    assert "lora" not in _metadata(model_card(merged))["tags"]
    assert (metadata["license"], metadata["license_name"]) == ("other", "stabilityai-ai-community")
    assert metadata["license_link"].endswith("stabilityai/stable-diffusion-3.5-medium")
    assert f'revision="{"a" * 40}"' in blocks_of(model_card(adapter))[0]
    assert licence_of(preset("world", {"model": {"teacher": "elsewhere/x/y"}}).model)[0] == "other"


def test_the_text_names_levels_samplers_recipe_limits_and_origin() -> None:
    card = model_card(_found())
    for text in (
        "σ = 1, 0.9, 0.75, 0.5, 0",
        "| `CPSScheduler`, below (`pipe.scheduler.eta = 0.9`) | 0.9, as trained | 0.900 ± 0.020 |  |",
        "| the folder's own, as above | 1 | 0.910 ± 0.020 | +0.010 ± 0.012 |",
        "| the same with `stochastic_sampling=False` | 0 | 0.880 ± 0.020 | -0.020 ± 0.011 |",
        f"{preset('world').train_acdmd.iterations} iterations of 48",
        ", ".join(f"{reward.name} x {reward.weight:g}" for reward in preset("world").train_rtdmd.rewards),
        "LoRA of rank 32, alpha 64, on all linear layers in each stage",
        "the teacher in guided Euler steps",
        "## Limits",
        "d" * 64,
    ):
        assert text in plain(card)


def test_at_eta_one_diffusers_own_scheduler_is_the_trained_one() -> None:
    card = plain(model_card(_found({"model": {"eta": 1.0}})))
    assert "| the folder's own, as above | 1, as trained | 0.900 ± 0.020 |  |" in card
    assert "CPSScheduler" not in card


def test_a_level_that_was_not_scored_says_so() -> None:
    card = model_card(_found(metrics=_suite({name: value for name, value in METRICS.items() if name != "etas"})))
    assert "| the folder's own, as above | 1 | not scored |  |" in card


def test_an_import_has_sources_and_no_figures() -> None:
    found = _found(metrics={}, settings={}, sources={"generator_ema.pt": "e" * 64})
    assert eval_results(found) == []
    card = model_card(found)
    assert "model-index" not in _metadata(card)
    assert f"| generator_ema.pt | `{'e' * 64}` |" in card
    assert "Not evaluated here." in card


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_snippet_is_python_and_on_the_card(dtype: str) -> None:
    found = _found({"model": {"dtype": dtype}})
    blocks = blocks_of(model_card(found))
    assert len(blocks) == 3
    for code in blocks:
        ast.parse(code)
    assert f"    dtype=torch.{dtype},\n    text_encoder_3=None,\n)" in blocks[0]
    assert max(len(line) for code in (blocks[0], blocks[2]) for line in code.splitlines()) <= 96
    assert r'pipe(prompt="two \"red\" circles", **settings)' in blocks[0]
    assert 'subfolder="transformer"' in blocks[2]
    assert "pipe.scheduler.eta = 0.9\ntorch.manual_seed(0)\nimage = pipe(" in blocks[1]
    assert blocks_of(model_card(_found(forms=("merged",), rank=None)))[0].count("load_lora_adapter") == 0


def test_foreign_strings_are_text_in_the_cards_markdown_and_python() -> None:
    """A teacher's path, a prompt, a tag of a prompt file and a checkpoint's name; the gate runs the card's Python."""
    path = 'teachers/x"); import os; os.abort()  # `y`'
    prompt = "](x) ![p](https://example.org/p.png) <b>\n\n```python\nraise SystemExit\n```\n---\nlicense: mit"
    tag = "a | b <img src=x>"
    metrics = copy.deepcopy(METRICS)
    for name in ("teacher", "train_acdmd", "train_rtdmd"):
        metrics[name]["per_tag"]["strict"][tag] = {"mean": 0.5, "ci95": 0.1, "ci95_prompts": None}
    found = _found({"model": {"teacher": path}}, metrics=_suite(metrics))
    found = dataclasses.replace(found, prompt=prompt, folder='out"+exit()+"')
    card = model_card(found)
    blocks = blocks_of(card)
    assert len(blocks) == 3
    for code in blocks:
        strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert prompt in strings
        assert "import os" not in "\n".join(line for line in code.splitlines() if path[:10] not in line)
    strings = [node.value for node in ast.walk(ast.parse(blocks[0])) if isinstance(node, ast.Constant)]
    assert {path, 'out"+exit()+"'} <= set(strings)
    assert r"a \| b \<img src=x\>" in card
    assert "<b>" not in card.split("widget.png")[-1].replace(json.dumps(prompt), "")
    metadata = ModelCard(card).data.to_dict()
    assert metadata["license"] == "other"
    assert metadata["widget"][0]["text"] == prompt
    imported = model_card(_found(settings={}, metrics={}, sources={"a|b<i>.pt": "e" * 64}))
    assert r"| a\|b\<i\>.pt | `eeee" in imported


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": "SD3(); import os", "transformer": ["diffusers", "T"]},
        {"_class_name": "", "transformer": ["diffusers", "T"]},
        {"_class_name": 3, "transformer": ["diffusers", "T"]},
        {"transformer": ["diffusers", "T"]},
        {"_class_name": "P"},
        {"_class_name": "P", "transformer": [None, None]},
    ],
)
def test_a_base_whose_classes_are_no_names_is_refused(index: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model_index.json: .* is not the name of a class or part"):
        base_model(tmp_path)


def test_suites_stand_one_below_the_other_with_their_sizes() -> None:
    """Each suite has a heading, what it was drawn at where that is not the trained size, and its own data set on the
    Hub."""
    two = _suite(METRICS)
    two["order"].append("large")
    two["suites"]["large"] = _suite(METRICS, "large", 72)["suites"]["large"]
    text = model_card(_found(metrics=two))
    assert text.index("### heldout") < text.index("### large")
    assert "for 12 held-out prompts, 36 x 36 pixels." in text
    assert "for 12 held-out prompts, 72 x 72 pixels (trained at 36)." in text
    results = _metadata(text)["model-index"][0]["results"]
    assert [one["dataset"]["type"] for one in results] == [
        "held-out-prompts-heldout",
        "held-out-prompts-heldout",
        "held-out-prompts-large",
        "held-out-prompts-large",
    ]
