"""Stage prepare_prompts: the sets of prompts that the stages name, in one schema, each without duplicates, and training
disjoint from evaluation.

Run `rtdmd prepare_prompts`: it reads params.yaml and the sources it names, and writes results/prepare_prompts/:
train.jsonl (all training sets), eval.jsonl (all evaluation sets), summary.json, and sources.json (what came from where,
and what was left out).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rtdmd.common.files import sha256_file, write_json, write_jsonl
from rtdmd.pipeline.stage import Stage, open_stage
from rtdmd.prompts.records import ErrorPolicy, PromptSet, Source, make_sets
from rtdmd.prompts.registration import Reading, SourceParams
from rtdmd.prompts.registry import SOURCES


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("prepare_prompts", root) as stage:
        params = stage.params
        use = dict.fromkeys(params.training_sets, "training") | dict.fromkeys(params.evaluation_sets, "evaluation")
        policy = {name: ErrorPolicy(drop=params.prepare_prompts.on_bad == "drop") for name in use}
        read: dict[str, list[list[Source]]] = {}
        about: dict[str, list[dict[str, Any]]] = {}
        for name in (*params.evaluation_sets, *params.training_sets):  # what is generated avoids evaluation's
            held_out: list[Source] = []
            if use[name] == "training":
                for evaluation in params.evaluation_sets:
                    held_out += [source for group in read[evaluation] for source in group]
            read[name] = []
            about[name] = []
            for number, spec in enumerate(params.prepare_prompts.sets[name]):
                key = f"prepare_prompts.sets.{name}[{number}]"
                sources, origin = read_source(stage, spec, key, held_out, policy[name])
                read[name].append(sources)
                about[name].append(origin | {"read": len(sources)})
        training = {name: read[name] for name in params.training_sets}
        sets = make_sets(training, {name: read[name] for name in params.evaluation_sets}, policy)
        _write(stage, sets, use, about, policy)


def read_source(
    stage: Stage, spec: SourceParams, key: str, held_out: Sequence[Source], policy: ErrorPolicy
) -> tuple[list[Source], dict[str, Any]]:
    """The prompts of one source, and what says where they came from (for a file its hash)."""
    reading = Reading(key, stage.input, stage.seed, stage.params.prepare_prompts.max_characters, policy, held_out)
    sources, facts = SOURCES[spec.name].read(spec, reading)
    return sources, spec.model_dump(mode="json", exclude_none=True) | facts


def _write(
    stage: Stage,
    sets: Mapping[str, PromptSet],
    use: Mapping[str, str],
    about: Mapping[str, list[dict[str, Any]]],
    policy: Mapping[str, ErrorPolicy],
) -> None:
    summary: dict[str, Any] = {"files": {}, "sets": {}}
    for file, kind in (("train.jsonl", "training"), ("eval.jsonl", "evaluation")):
        prompts = [prompt for name, found in sets.items() if use[name] == kind for prompt in found.prompts]
        path = stage.output(file)
        write_jsonl(path, [prompt.row() for prompt in prompts])
        summary["files"][file] = {"prompts": len(prompts), "sha256": sha256_file(path)}
    record: dict[str, Any] = {}
    for name, found in sets.items():
        source = ", ".join(dict.fromkeys(origin["name"] for origin in about[name]))
        summary["sets"][name] = {"use": use[name], "source": source} | _summary(found, policy[name])
        counts = zip(about[name], found.ids, found.duplicates, strict=True)
        sources = [origin | {"ids": list(ids), "duplicates": repeated} for origin, ids, repeated in counts]
        record[name] = {"sources": sources, "dropped": policy[name].dropped}
    write_json(stage.output("summary.json"), summary)
    write_json(stage.output("sources.json"), {"sets": record})


def _summary(found: PromptSet, policy: ErrorPolicy) -> dict[str, Any]:
    tags = Counter(prompt.tag for prompt in found.prompts if prompt.tag is not None)
    figures = {
        "prompts": len(found.prompts),
        "duplicates_dropped": sum(found.duplicates),
        "with_metadata": sum(prompt.metadata is not None for prompt in found.prompts),
        "per_tag": dict(tags),
    }
    if policy.drop:
        figures["dropped"] = dict(Counter(dropped["reason"] for dropped in policy.dropped))
    return figures
