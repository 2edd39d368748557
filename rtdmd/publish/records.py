"""The records that travel with published weights: what they were made of, and what a foreign record may be.

`provenance.json` and the header of the weights hold everything about their making that inputs and settings decide. Same
inputs, same bytes: no time, host or Git commit is in it; those are known when a folder leaves (`upload.json`).

Records may come from anybody: each is read up to a size, has one strict form with bounds, and what does not fit is one
line. Keys that are not asked for here may be there; nobody reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from safetensors import SafetensorError, safe_open

from rtdmd.common.errors import UserError
from rtdmd.common.escape import printable
from rtdmd.common.files import hash_of, read_json
from rtdmd.common.parsing import first_line, parse_json
from rtdmd.config.rewards import SOURCES
from rtdmd.pipeline.lineage import Step, inside

PROVENANCE = "provenance.json"
GATE = "gate.json"
RESOLVED = "resolved.json"
UPLOAD = "upload.json"
HEADER_KEY = "rtdmd_provenance"
PROMPTS = {"train": "results/prepare_prompts/train.jsonl", "held_out": "results/prepare_prompts/eval.jsonl"}
MAKERS = ("train_acdmd", "train_rtdmd", "publish")
"""Stages that write weights."""
USE = ("weight", "policy")  # keys that say how a stage uses a scorer, not what it is
ASK = "copy or download it again from whoever made it"
"""What to do about a record that is none."""
MAX_BYTES = 4 * 2**20
"""Of a record: ours have some 50 kB."""
MAX_VALUES = 20_000
MAX_DEPTH = 20
MAX_STAGES = 50
MAX_FILES = 2000


def _inside(path: str) -> str:
    if not inside(path):
        raise ValueError("a path inside the folder is expected, as a/b.txt")
    return path


def _bounded(value: Any) -> Any:
    """Nested values, walked without recursion."""
    todo = [(value, 1)]
    seen = 0
    while todo:
        one, depth = todo.pop()
        seen += 1
        if seen > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES} values, or nested deeper than {MAX_DEPTH}")
        if isinstance(one, dict):
            todo += [(key, depth) for key in one]
            one = list(one.values())
        if isinstance(one, list):
            todo += [(inner, depth + 1) for inner in one]
        elif isinstance(one, str):
            one.encode()  # UnicodeEncodeError, a ValueError, for half a character
    return value


Record = TypeVar("Record", bound="Foreign")
Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Name = Annotated[str, StringConstraints(pattern=r"^[\w.+-]{1,100}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Settings = Annotated[dict[Text, Any], AfterValidator(_bounded)]
Inputs = Annotated[dict[Text, Hash], Field(max_length=MAX_FILES)]
Files = Annotated[dict[Annotated[Text, AfterValidator(_inside)], Hash], Field(max_length=MAX_FILES)]
Versions = Annotated[dict[Name, Text], Field(max_length=MAX_STAGES)]
Words = Annotated[list[Text], Field(max_length=MAX_FILES)]


class Foreign(BaseModel):
    """A record of anybody's."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Provenance(Foreign):
    """`provenance.json`, and the header of weights (`lineage_record` makes it)."""

    settings: Settings
    settings_sha256: Hash | None = None
    inputs: dict[Name, Inputs] = Field(min_length=1, max_length=MAX_STAGES)  # stage -> path -> hash
    versions: dict[Name, Versions]  # by stage


class Resolved(Foreign):
    """`resolved.json` of a stage."""

    stage: Name
    params: Settings
    inputs: Inputs
    versions: Versions = {}


class Upload(Foreign):
    """`upload.json`: what `rtdmd upload` says of a publication."""

    tag: Text | None = None
    git_commit: Text | None = None
    changed_files: Words = []
    stale: Words = []
    files: Files = {}


class Gate(Foreign):
    """`gate.json`: what passed the stage's gate."""

    sha256: Files = {}


def checked(kind: type[Record], value: Any, name: str) -> Record:
    """A parsed record in its form; UserError that says where it differs."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        says = printable(f"{place}: {first['msg']}" if place else first["msg"])
        raise UserError(f"{printable(name)}: not a record of this package ({says}); {ASK}") from error


def read_record_file(kind: type[Record], path: Path, name: str = "") -> Record:
    """A record's file in its form. ``name`` is what errors call it."""
    called = name or str(path)
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{printable(called)}: not a record of this package (more than {MAX_BYTES} bytes); {ASK}")
    return checked(kind, read_json(path, "trace something else"), called)


def lineage_record(
    lineage: Mapping[str, Mapping[str, Any]], identities: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """What the settings files (``resolved.json``) of the stages behind the weights say together.

    Keys: settings (all of them) and settings_sha256, inputs (stage -> path -> SHA-256), versions (stage -> package ->
    version), seeds, teacher (and student, where that has a base of its own), prompts and scorers, each with its hash or
    revision. identities: stage -> scorer -> what it said that it was when it ran (`Reward.identity`).
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


def _scorers(
    settings: Mapping[str, Any], inputs: Mapping[str, str], identities: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
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
    path = name if revision is None else f"{name}@{revision}"
    return {"name": name, "revision": revision, "sha256": inputs.get(path)}


def weights_metadata(record: Mapping[str, Any]) -> dict[str, str]:
    """The record as an entry of a safetensors header, so that weights that lost their folder still tell."""
    return {HEADER_KEY: json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))}


def header_of(path: Path) -> tuple[list[str], dict[str, str]]:
    """Names of the tensors of a safetensors file, and its metadata. UserError when it is no such file."""
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys()), dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a safetensors file ({first_line(error)}); {_again(path)}") from error


def _again(path: Path) -> str:
    """What brings back damaged weights: the stage that made them, or whoever gave them."""
    stage = next((folder.name for folder in path.absolute().parents if folder.parent.name == "results"), None)
    return f"`snakemake {stage}` makes it again" if stage in MAKERS else "copy or download it again"


def record_of_weights(path: Path) -> dict[str, Any] | None:
    """The record in the header of a safetensors file; None when it holds none."""
    text = header_of(path)[1].get(HEADER_KEY)
    return parse_json(text, f"{path}: {HEADER_KEY}", _again(path)) if text else None


def steps_of_record(record: Provenance, name: str) -> list[Step]:
    """The steps that a record tells of, causes first. ``name`` is what errors call the record.

    A section of the settings (or a key ``stage.key``) belongs to the stage of its name, what all share (run, model,
    adapter) to the first one.
    """
    needs: dict[str, set[str]] = {}
    for stage, paths in record.inputs.items():
        needs[stage] = {path.split("/")[1] for path in paths if path.startswith("results/")}
    order: list[str] = []
    while len(order) < len(needs):
        ready = sorted(s for s in needs if s not in order and not (needs[s] & needs.keys()) - {*order, s})
        if not ready:
            raise UserError(f"{name}: not a record of this package (its stages read each other's results); {ASK}")
        order.append(ready[0])
    params: dict[str, dict[str, Any]] = {stage: {} for stage in order}
    for key, value in record.settings.items():
        section = key.split(".")[0]
        params[section if section in params else order[0]][key] = value
    return [
        Step(stage, dict(record.inputs[stage]), params=params[stage], versions=record.versions.get(stage, {}))
        for stage in order
    ]
