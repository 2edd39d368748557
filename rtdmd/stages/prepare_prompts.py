"""Stage prepare_prompts: training and evaluation prompts in one schema, de-duplicated and disjoint.

Run `rtdmd prepare_prompts`: it reads params.yaml and the sources it names, and writes results/prepare_prompts/:
{train,eval}.jsonl, summary.json, and sources.json (what came from where, and what was left out).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rtdmd.common.files import sha256_file, write_json, write_jsonl
from rtdmd.pipeline.stage import Stage, open_stage
from rtdmd.prompts.records import Faults, Prompt, PromptSets, Source, make_sets
from rtdmd.prompts.registration import Reading, SourceParams
from rtdmd.prompts.registry import SOURCES


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("prepare_prompts", root) as stage:
        params = stage.params.prepare_prompts
        faults = Faults(drop=params.on_bad == "drop")
        read: dict[str, list[list[Source]]] = {"eval": [], "train": []}
        about: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
        for split, specs in (("eval", params.eval), ("train", params.train)):  # what is generated avoids evaluation's
            for number, spec in enumerate(specs):
                held_out = [source for group in read["eval"] for source in group] if split == "train" else []
                sources, origin = read_source(stage, spec, f"prepare_prompts.{split}[{number}]", held_out, faults)
                read[split].append(sources)
                about[split].append(origin | {"read": len(sources)})
        sets = make_sets(read["train"], read["eval"], faults)
        _write(stage, sets, about, faults)


def read_source(
    stage: Stage, spec: SourceParams, key: str, held_out: Sequence[Source], faults: Faults
) -> tuple[list[Source], dict[str, Any]]:
    """The prompts of one source, and what says where they came from (for a file its hash)."""
    reading = Reading(key, stage.input, stage.seed, stage.params.prepare_prompts.max_characters, faults, held_out)
    sources, facts = SOURCES[spec.name].read(spec, reading)
    return sources, spec.model_dump(mode="json", exclude_none=True) | facts


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
