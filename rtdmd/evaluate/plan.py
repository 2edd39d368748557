"""Which images are judged: a fixed list of (prompt, image index), the same for every model, so that all comparisons
are paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNTAGGED = "all"  # the one stratum of prompts that carry no tag


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt file."""

    id: int
    text: str
    tag: str
    metadata: dict[str, Any] | None


@dataclass(frozen=True)
class Item:
    """One image to be judged: the `index`-th image of `prompt`; (seed, prompt.id, index) fixes its noise."""

    prompt: Prompt
    index: int


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSONL file as prepare_prompts writes it."""
    from rtdmd.files import read_jsonl

    rows = read_jsonl(path)
    return [Prompt(row["id"], row["prompt"], row["tag"] or UNTAGGED, row["metadata"]) for row in rows]


def tags_of(prompts: Sequence[Prompt]) -> list[str]:
    """The tags in the order in which they first appear."""
    return list(dict.fromkeys(prompt.tag for prompt in prompts))


def plan_images(prompts: Sequence[Prompt], images_per_tag: int) -> list[Item]:
    """`images_per_tag` images for each tag, going round the tag's prompts: image i shows prompt i mod P with index i
    div P."""
    items = []
    for tag in tags_of(prompts):
        own = [prompt for prompt in prompts if prompt.tag == tag]
        items += [Item(own[i % len(own)], i // len(own)) for i in range(images_per_tag)]
    return items


def grid_prompts(items: Sequence[Item], count: int) -> list[Prompt]:
    """`count` prompts for the sample grids, spread evenly over the tags and grouped by tag."""
    tags = tags_of([item.prompt for item in items])
    own = {tag: list(dict.fromkeys(i.prompt.id for i in items if i.prompt.tag == tag)) for tag in tags}
    by_id = {item.prompt.id: item.prompt for item in items}
    depth = max(len(ids) for ids in own.values())
    ranked = [own[tag][k] for k in range(depth) for tag in tags if k < len(own[tag])]
    chosen = set(ranked[:count])
    return [by_id[prompt_id] for tag in tags for prompt_id in own[tag] if prompt_id in chosen]
