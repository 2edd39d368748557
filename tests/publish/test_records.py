"""The record beside weights and in their header."""

from pathlib import Path

import pytest
import torch

from rtdmd.common.errors import UserError
from rtdmd.common.files import hash_of, json_text, save_tensors
from rtdmd.publish.records import (
    HEADER_KEY,
    Provenance,
    checked,
    header_of,
    lineage_record,
    record_of_weights,
    steps_of_record,
    weights_metadata,
)
from tests.publish.publication import weights

CLIP = {"name": "clipscore", "model": "data/clip", "revision": None, "weight": 0.1}
HPS = {"name": "hpsv2", "model": "owner/hps", "revision": "a" * 40, "base": "owner/clip", "base_revision": "b" * 40}
SHARED = {"run.seed": 7, "model": {"teacher": "data/teacher", "revision": None}}
LINEAGE = {
    "evaluate": {
        "params": {**SHARED, "evaluate": {"rewards": [{**CLIP, "weight": 1.0, "policy": False}, HPS]}},
        "inputs": {
            "results/train_rtdmd/generator.safetensors": "1" * 64,
            "results/prepare_prompts/eval.jsonl": "2" * 64,
        },
        "versions": {"torch": "2.13.0"},
    },
    "train_rtdmd": {
        "params": {**SHARED, "train_rtdmd": {"rewards": [CLIP]}},
        "inputs": {
            "results/train_acdmd/generator.safetensors": "3" * 64,
            "results/prepare_prompts/train.jsonl": "4" * 64,
            "data/teacher": "5" * 64,
            "data/clip": "6" * 64,
        },
        "versions": {"torch": "2.13.0"},
    },
    "train_acdmd": {"params": SHARED, "inputs": {"data/teacher": "5" * 64}, "versions": {"torch": "2.12.0"}},
}


def test_the_record_names_teacher_prompts_scorers_and_seeds() -> None:
    record = lineage_record(LINEAGE)
    assert record["teacher"] == {"name": "data/teacher", "revision": None, "sha256": "5" * 64}
    assert record["prompts"] == {
        "train": {"path": "results/prepare_prompts/train.jsonl", "sha256": "4" * 64},
        "held_out": {"path": "results/prepare_prompts/eval.jsonl", "sha256": "2" * 64},
    }
    assert record["seeds"] == {"run": 7}
    assert record["settings_sha256"] == hash_of(record["settings"])
    clip, hps = record["scorers"]
    assert clip["used_by"] == ["train_rtdmd", "evaluate"]  # the same scorer, whatever it weighs
    assert clip["weights"] == {"model": {"name": "data/clip", "revision": None, "sha256": "6" * 64}}
    assert hps["used_by"] == ["evaluate"]
    assert hps["weights"]["base"] == {"name": "owner/clip", "revision": "b" * 40, "sha256": None}


def test_a_scorer_is_named_as_it_was_when_it_ran() -> None:
    """By the stage that used it first; a stage that left no record of a scorer says nothing about it."""
    trained, judged = {"files": {"model.safetensors": "7" * 64}}, {"files": {"hps.safetensors": "8" * 64}}
    identities = {"train_rtdmd": {"clipscore": trained}, "evaluate": {"clipscore": trained, "hpsv2": judged}}
    assert [one["identity"] for one in lineage_record(LINEAGE, identities)["scorers"]] == [trained, judged]
    assert [one["identity"] for one in lineage_record(LINEAGE)["scorers"]] == [None, None]


def test_the_record_depends_on_its_sources_only_and_not_on_their_order() -> None:
    turned = dict(reversed(LINEAGE.items()))
    assert weights_metadata(lineage_record(LINEAGE)) != {}
    assert json_text(lineage_record(turned)["inputs"]) == json_text(lineage_record(LINEAGE)["inputs"])
    assert lineage_record(turned)["settings_sha256"] == lineage_record(LINEAGE)["settings_sha256"]


def test_weights_carry_their_record(tmp_path: Path) -> None:
    record = lineage_record(LINEAGE)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights(record))
    assert record_of_weights(path) == record
    assert header_of(path)[0] == ["transformer.proj.lora_A.weight"]


def test_steps_come_causes_first_and_carry_their_settings() -> None:
    steps = steps_of_record(checked(Provenance, lineage_record(LINEAGE), "a record"), "a record")
    assert [step.name for step in steps] == ["train_acdmd", "train_rtdmd", "evaluate"]
    assert [list(step.params) for step in steps] == [["run.seed", "model"], ["train_rtdmd"], ["evaluate"]]
    assert [step.versions["torch"] for step in steps] == ["2.12.0", "2.13.0", "2.13.0"]
    published = lineage_record(
        {**LINEAGE, "publish": {"params": {"publish.prompt": "x"}, "inputs": {}, "versions": {}}}
    )
    record = checked(Provenance, published, "a record")
    by_name = {step.name: step.params for step in steps_of_record(record, "a record")}
    assert by_name["publish"]["publish.prompt"] == "x"
    assert steps[1].inputs == LINEAGE["train_rtdmd"]["inputs"]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"inputs": [], "settings": {}, "versions": {}},
        {"inputs": {}, "settings": {}, "versions": {}},
        {
            "inputs": {"a": {"results/b/x.txt": "1" * 64}, "b": {"results/a/x.txt": "2" * 64}},
            "settings": {},
            "versions": {},
        },
    ],
)
def test_a_damaged_record_is_a_user_error(record: dict) -> None:
    with pytest.raises(UserError, match="a record: not a record of this package"):
        steps_of_record(checked(Provenance, record, "a record"), "a record")


@pytest.mark.parametrize("data", [b"", b"\x00" * 8, b"\xff" * 20, b"\x02" + b"\x00" * 7 + b"{]"])
def test_what_is_no_safetensors_file(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.safetensors: not a safetensors file.*; copy or download it again$"):
        header_of(path)
    own = tmp_path / "results" / "publish" / "transformer" / "x.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(data)
    with pytest.raises(UserError, match=r"not a safetensors file.*; `snakemake publish` makes it again$"):
        header_of(own)


def test_a_damaged_record_in_whole_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors({"a": torch.ones(1)}, path, {HEADER_KEY: "{"})
    with pytest.raises(UserError, match=f"{HEADER_KEY}: not JSON.*; copy or download it again$"):
        record_of_weights(path)
