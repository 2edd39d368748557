"""Which images are judged: a fixed list of (prompt, image index), the same for every model, so that all comparisons are
paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rtdmd.prompts.records import Prompt

UNTAGGED = "all"  # the one stratum of prompts that carry no tag


@dataclass(frozen=True)
class Item:
    """One image to be judged: the ``index``-th image of ``prompt``; (seed, prompt.id, index) fixes its noise."""

    prompt: Prompt
    index: int

    @property
    def tag(self) -> str:
        """The prompt's tag; prompts without one are one group."""
        return self.prompt.tag or UNTAGGED

    @property
    def key(self) -> tuple[int, int]:
        """(prompt id, image index)."""
        return self.prompt.id, self.index


def plan_images(prompts: Sequence[Prompt], images_per_tag: int) -> list[Item]:
    """``images_per_tag`` images for each tag, going round its prompts: image i shows prompt i mod P, index i div P."""
    items = []
    for tag in dict.fromkeys(prompt.tag for prompt in prompts):
        own = [prompt for prompt in prompts if prompt.tag == tag]
        items += [Item(own[i % len(own)], i // len(own)) for i in range(images_per_tag)]
    return items


def grid_prompts(items: Sequence[Item], count: int) -> list[Prompt]:
    """``count`` prompts for the sample grids, spread evenly over the tags and grouped by tag."""
    own: dict[str, dict[int, Prompt]] = {}
    for item in items:
        own.setdefault(item.tag, {})[item.prompt.id] = item.prompt
    columns = [list(prompts.values()) for prompts in own.values()]
    depth = max(len(column) for column in columns)
    ranked = [column[k].id for k in range(depth) for column in columns if k < len(column)]
    chosen = set(ranked[:count])
    return [prompt for column in columns for prompt in column if prompt.id in chosen]
