"""Stage prepare_prompts: training and evaluation prompts in one schema, de-duplicated and disjoint.

Run `rtdmd prepare_prompts`: it reads params.yaml and the sources it names, and writes results/prepare_prompts/:
{train,eval}.jsonl, summary.json, and sources.json (what came from where, and what was left out).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtdmd.common.files import sha256_file, write_json, write_jsonl
from rtdmd.pipeline.stage import Stage, open_stage
from rtdmd.prompts.records import Faults, Prompt, PromptSets, Source, make_sets
from rtdmd.prompts.sources.files import checked, file_sources
from rtdmd.prompts.sources.generated import generated_sources
from rtdmd.prompts.sources.hub import dataset_file
from rtdmd.prompts.sources.named import CHECKS
from rtdmd.prompts.sources.world import world_sources

if TYPE_CHECKING:
    from rtdmd.config.data import PromptSourceParams


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("prepare_prompts", root) as stage:
        params = stage.params.prepare_prompts
        faults = Faults(drop=params.on_bad == "drop")
        read: dict[str, list[list[Source]]] = {"eval": [], "train": []}
        about: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
        for split, specs in (("eval", params.eval), ("train", params.train)):  # what is generated avoids evaluation's
            for spec in specs:
                held_out = [source for group in read["eval"] for source in group] if split == "train" else []
                sources, origin = read_source(stage, spec, split, held_out, faults)
                read[split].append(sources)
                about[split].append(origin | {"read": len(sources)})
        sets = make_sets(read["train"], read["eval"], faults)
        _write(stage, sets, about, faults)


def read_source(
    stage: Stage, spec: PromptSourceParams, split: str, held_out: Sequence[Source], faults: Faults
) -> tuple[list[Source], dict[str, Any]]:
    """The prompts of one source, and what says where they came from (for a file its hash)."""
    origin = spec.model_dump(mode="json", exclude_none=True)
    if spec.name == "world":
        return world_sources(str(spec.split)), origin
    if spec.name == "generated":
        return generated_sources(spec.tags or {}, stage.seed, held_out), origin
    path, label = _file(stage, spec)
    sources = file_sources(path, label, faults, stage.params.prepare_prompts.max_characters)
    return checked(sources, CHECKS[spec.name], faults), origin | {"sha256": sha256_file(path)}


def _file(stage: Stage, spec: PromptSourceParams) -> tuple[Path, str]:
    """The file behind a source, and how errors call it."""
    name = str(spec.path)
    if spec.repo is None or spec.revision is None:
        return stage.input(name), name
    return dataset_file(spec.repo, spec.revision, name), f"{spec.repo}@{spec.revision[:8]}/{name}"


def _write(stage: Stage, sets: PromptSets, about: dict[str, list[dict[str, Any]]], faults: Faults) -> None:
    names = dict.fromkeys(origin["name"] for origins in about.values() for origin in origins)
    summary: dict[str, Any] = {"source": ", ".join(names)}
    if faults.drop:
        summary["dropped"] = dict(Counter(dropped["reason"] for dropped in faults.dropped))
    record: dict[str, Any] = {"dropped": faults.dropped}
    for split, prompts in (("train", sets.train), ("eval", sets.eval)):
        path = stage.output(f"{split}.jsonl")
        write_jsonl(path, [prompt.row() for prompt in prompts])
        summary[split] = _summary(prompts, sum(sets.duplicates[split]), path)
        counts = zip(about[split], sets.ids[split], sets.duplicates[split], strict=True)
        record[split] = [origin | {"ids": list(ids), "duplicates": repeated} for origin, ids, repeated in counts]
    write_json(stage.output("summary.json"), summary)
    write_json(stage.output("sources.json"), record)


def _summary(prompts: Sequence[Prompt], duplicates: int, path: Path) -> dict[str, Any]:
    tags = Counter(prompt.tag for prompt in prompts if prompt.tag is not None)
    with_metadata = sum(prompt.metadata is not None for prompt in prompts)
    return {
        "prompts": len(prompts),
        "duplicates_dropped": duplicates,
        "with_metadata": with_metadata,
        "per_tag": dict(tags),
        "sha256": sha256_file(path),
    }
