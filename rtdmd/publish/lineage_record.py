"""The record that travels with published weights: everything about their making that inputs and settings decide.

`provenance.json` and the header of the weights hold it. Same inputs, same bytes: no time, host or Git commit is in it;
those are known when a folder leaves (upload_plan.py writes them to `upload.json`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.common.errors import UserError
from rtdmd.common.files import hash_of
from rtdmd.common.parsing import parse_json
from rtdmd.config.rewards import SOURCES
from rtdmd.pipeline.lineage import Step
from rtdmd.publish.record_schema import ASK

if TYPE_CHECKING:
    from rtdmd.publish.record_schema import Provenance

HEADER_KEY = "rtdmd_provenance"
PROMPTS = {
    "train": "results/prepare_prompts/train.jsonl",
    "held_out": "results/prepare_prompts/eval.jsonl",
}
MAKERS = ("train_acdmd", "train_rtdmd", "publish")
"""Stages that write weights."""
USE = ("weight", "policy")  # keys that say how a stage uses a scorer, not what it is
Resolved = Mapping[str, Any]  # a stage's resolved.json
Identities = Mapping[str, Mapping[str, Any]]  # stage -> scorer -> `Reward.identity`, as the stage's files hold it


def lineage_record(lineage: Mapping[str, Resolved], identities: Identities | None = None) -> dict[str, Any]:
    """What the settings files (``resolved.json``) of the stages behind the weights say together.

    Keys: settings (all of them) and settings_sha256, inputs (stage -> path -> SHA-256), versions (stage -> package ->
    version), seeds, teacher (and student, where that has a base of its own), prompts and scorers, each with its hash or
    revision, the scorers also with what they said that they were when they ran (``identities``: SHA-256 of every file
    of weights, template, version).
    """
    settings = {key: value for record in lineage.values() for key, value in record["params"].items()}
    inputs = {name: dict(record["inputs"]) for name, record in lineage.items()}
    everything = {path: digest for paths in inputs.values() for path, digest in paths.items()}
    model = settings["model"]
    student = model.get("student")
    own_base = {"student": _source(student["model"], student["revision"], everything)} if student else {}
    return {
        "settings": settings,
        "settings_sha256": hash_of(settings),
        "inputs": inputs,
        "versions": {name: dict(record["versions"]) for name, record in lineage.items()},
        "seeds": {"run": settings["run.seed"]},
        "teacher": _source(model["teacher"], model["revision"], everything),
        **own_base,
        "prompts": {name: {"path": path, "sha256": everything.get(path)} for name, path in PROMPTS.items()},
        "scorers": _scorers(settings, everything, identities or {}),
    }


def _scorers(settings: Mapping[str, Any], inputs: Mapping[str, str], identities: Identities) -> list[dict[str, Any]]:
    """Every scorer that trained or judged the weights, once for each way in which it is set."""
    found: dict[str, dict[str, Any]] = {}
    for stage in ("train_rtdmd", "evaluate"):
        for reward in settings.get(stage, {}).get("rewards", []):
            what = {key: value for key, value in reward.items() if value is not None and key not in USE}
            scorer = found.setdefault(hash_of(what), {"name": reward["name"], "settings": what, "used_by": []})
            scorer["used_by"].append(stage)
            scorer.setdefault("identity", identities.get(stage, {}).get(reward["name"]))
            scorer["weights"] = {
                key: _source(reward[key], reward.get(pin), inputs) for key, pin in SOURCES.items() if reward.get(key)
            }
    return list(found.values())


def _source(name: str, revision: str | None, inputs: Mapping[str, str]) -> dict[str, str | None]:
    """A model by its Hub commit, if it has one, and by the hash of the files that were an input."""
    return {
        "name": name,
        "revision": revision,
        "sha256": inputs.get(name if revision is None else f"{name}@{revision}"),
    }


def weights_metadata(record: Mapping[str, Any]) -> dict[str, str]:
    """The record as an entry of a safetensors header, so that weights that lost their folder still tell."""
    return {HEADER_KEY: json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))}


def header_of(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: tensor names, and ``__metadata__``. UserError when it is no such file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= min(100_000_000, path.stat().st_size - 8):
            raise UserError(f"{path}: not a safetensors file; {_again(path)}")
        text = file.read(size)
    header = parse_json(text, f"{path}: not a safetensors file", _again(path))
    if not isinstance(header.get("__metadata__", {}), dict):
        raise UserError(f"{path}: not a safetensors file (its metadata is not a mapping); {_again(path)}")
    return header


def _again(path: Path) -> str:
    """What brings back damaged weights: the stage that made them, or whoever gave them."""
    stage = next((folder.name for folder in path.absolute().parents if folder.parent.name == "results"), None)
    return f"`snakemake {stage}` makes it again" if stage in MAKERS else "copy or download it again"


def record_of_weights(path: Path) -> dict[str, Any] | None:
    """The record in the header of a safetensors file; None when it holds none."""
    text = header_of(path).get("__metadata__", {}).get(HEADER_KEY)
    return parse_json(text, f"{path}: {HEADER_KEY}", _again(path)) if text else None


def steps_of_record(record: Provenance, name: str) -> list[Step]:
    """The steps that a record tells of, causes first. ``name`` is what errors call the record.

    A section of the settings (or a key ``stage.key``) belongs to the stage of its name, what all share (run, model,
    adapter) to the first one.
    """
    order = _causes_first(record.inputs, name)
    params: dict[str, dict[str, Any]] = {stage: {} for stage in order}
    for key, value in record.settings.items():
        section = key.split(".")[0]
        params[section if section in params else order[0]][key] = value
    return [
        Step(stage, dict(record.inputs[stage]), params=params[stage], versions=_versions_of(record.versions, stage))
        for stage in order
    ]


def _versions_of(versions: Mapping[str, Any], stage: str) -> dict[str, str]:
    """Versions by stage, or (records of 0.1) one list for all."""
    if all(isinstance(value, Mapping) for value in versions.values()):
        return dict(versions.get(stage, {}))
    return dict(versions)


def _causes_first(inputs: Mapping[str, Mapping[str, str]], name: str) -> list[str]:
    """Stages in an order in which none comes before one whose results it reads."""
    needs = {}
    for stage, paths in inputs.items():
        needs[stage] = {path.split("/")[1] for path in paths if path.startswith("results/")}
    order: list[str] = []
    while len(order) < len(needs):
        ready = sorted(s for s in needs if s not in order and not (needs[s] & needs.keys()) - {*order, s})
        if not ready:
            raise UserError(f"{name}: not a record of this package (its stages read each other's results); {ASK}")
        order.append(ready[0])
    return order
