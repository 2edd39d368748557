"""Which images are judged: a fixed list of (prompt, image index), the same for every model, so that all comparisons are
paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rtdmd.config import SuiteParams
from rtdmd.prompts.records import Prompt, by_tag, first_prompts

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
    for own in by_tag(prompts):
        items += [Item(own[i % len(own)], i // len(own)) for i in range(images_per_tag)]
    return items


def plan_suite(suite: SuiteParams, prompts: Sequence[Prompt]) -> list[Item]:
    """The images of a suite on the prompts of its set: so many a tag, or so many a prompt, a tag after the other."""
    used = first_prompts(prompts, suite.max_prompts)
    if suite.images_per_tag is not None:
        return plan_images(used, suite.images_per_tag)
    indices = range(suite.images_per_prompt or 0)
    return [Item(prompt, index) for own in by_tag(used) for prompt in own for index in indices]


def grid_prompts(items: Sequence[Item], count: int) -> list[Prompt]:
    """``count`` prompts for the sample grids, spread evenly over the tags and grouped by tag."""
    planned = list({item.prompt.id: item.prompt for item in items}.values())
    return [prompt for own in by_tag(first_prompts(planned, count)) for prompt in own]
