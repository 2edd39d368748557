"""Stage prepare_prompts: training and evaluation prompts in one schema, de-duplicated and disjoint.

Run `rtdmd prepare_prompts`: it reads params.yaml and writes results/prepare_prompts/{train,eval}.jsonl, summary.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rtdmd.files import sha256_file, write_json, write_jsonl
from rtdmd.prompts import Prompt, Source, file_sources, make_sets, world_sources
from rtdmd.stage import Stage, open_stage


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("prepare_prompts", root) as stage:
        sets = make_sets(*_sources(stage))
        summary: dict[str, Any] = {"source": stage.params.prepare_prompts.source}
        for split, prompts in (("train", sets.train), ("eval", sets.eval)):
            path = stage.output(f"{split}.jsonl")
            write_jsonl(path, [prompt.row() for prompt in prompts])
            summary[split] = _summary(prompts, sets.duplicates[split], path)
        write_json(stage.output("summary.json"), summary)


def _sources(stage: Stage) -> tuple[list[Source], list[Source]]:
    """Training and evaluation prompts as params.yaml asks for them."""
    params = stage.params.prepare_prompts
    if params.source == "world":
        return world_sources("train"), world_sources(params.heldout)
    train, evaluation = (stage.input(str(path)) for path in (params.train_file, params.eval_file))
    return file_sources(train), file_sources(evaluation)


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
