"""Training prompts with their cached conditioning: which prompt is used at which position of which step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch

from rtdmd.backbones.protocol import Conditioning
from rtdmd.common.errors import UserError
from rtdmd.common.rng import epoch_order, permutation
from rtdmd.conditioning.text_cache import TextCache, open_text_cache
from rtdmd.pipeline.stage import Stage
from rtdmd.prompts.records import read_set

if TYPE_CHECKING:
    from rtdmd.config.training import TrainingParams


@dataclass(frozen=True)
class TrainingPrompts:
    """The prompts of a stage's training set in file order, the text cache, the run's seed, and the order in which
    prompts come."""

    records: list[dict[str, Any]]
    cache: TextCache
    seed: int
    order: Literal["uniform", "by_tag", "as_listed"] = "uniform"
    tag_shares: Mapping[str, int] = field(default_factory=dict)
    validation_prompts: list[dict[str, Any]] = field(default_factory=list)  # in file order, never in a batch

    @staticmethod
    def open(
        stage: Stage, device: torch.device, params: TrainingParams, validation_prompts: int = 0
    ) -> TrainingPrompts:
        """The set of prompts that an open stage's section ``params`` names, conditioning on ``device``;
        ``validation_prompts`` of them, drawn from the seed, are set aside. UserError where none would be left."""
        path = stage.input("results/prepare_prompts/train.jsonl")
        records = [prompt.row() for prompt in read_set(path, params.prompts)]
        if validation_prompts >= len(records):
            raise UserError(
                f"train_rtdmd.validation.prompts: {validation_prompts}, of {len(records)} prompts of the set"
                f" {params.prompts}; allowed: 1 to {len(records) - 1}, or validation.every: 0"
            )
        chosen = set(permutation(len(records), stage.seed, "set aside")[:validation_prompts])
        trained = [record for row, record in enumerate(records) if row not in chosen]
        set_aside = [record for row, record in enumerate(records) if row in chosen]
        splits = ("train", "eval") if params.watch.every else ("train",)
        cache = open_text_cache(stage, *splits).to(device)
        found = TrainingPrompts(trained, cache, stage.seed, params.prompt_order, params.tag_shares, set_aside)
        try:
            found.batch(0, 1, "preflight")  # says before the models are loaded what no batch could be made of
        except UserError as error:
            raise UserError(f"{stage.name}.{error}") from error
        return found

    def batch(self, step: int, size: int, stream: str) -> list[dict[str, Any]]:
        """Records of step ``step``: a window of an endless stream, a function of the position in it alone.

        uniform: one seeded permutation of all prompts after another. as_listed: the same of all lines of the sources,
        so that a prompt comes as often as they have it. by_tag: one permutation of all tags after another, each as
        often as ``tag_shares`` has it, followed by the next prompt of the tag's own permutation. Raises UserError
        where by_tag meets a prompt without a tag, or a share names a tag that no prompt has.
        """
        if self.order != "by_tag":
            lines = self._lines
            chosen = epoch_order(len(lines), step * size, size, self.seed, stream, "prompts")
            return [self.records[lines[line]] for line in chosen]
        return [self._by_tag(position, stream) for position in range(step * size, (step + 1) * size)]

    def _by_tag(self, position: int, stream: str) -> dict[str, Any]:
        """The record at one position of the by_tag stream."""
        places = self._places
        round_, offset = divmod(position, len(places))
        shuffled = [places[row] for row in permutation(len(places), self.seed, stream, "tags", round_)]
        tag = shuffled[offset]
        before = round_ * places.count(tag) + shuffled[:offset].count(tag)  # how often the tag has come
        rows = self._tags[tag]
        return self.records[rows[epoch_order(len(rows), before, 1, self.seed, stream, "prompts", tag)[0]]]

    @cached_property
    def _lines(self) -> list[int]:
        """Rows of the records, each once or, as listed, as often as the sources have it."""
        if self.order == "uniform":
            return list(range(len(self.records)))
        return [row for row, record in enumerate(self.records) for _ in range(record["times"])]

    @cached_property
    def _tags(self) -> dict[str, list[int]]:
        """Rows of each tag, tags in the order of their first prompt."""
        out: dict[str, list[int]] = {}
        for row, record in enumerate(self.records):
            if record["tag"] is None:
                raise UserError(
                    f"prompt_order: by_tag needs a tag for every prompt, but {record['prompt']!r} has none;"
                    " allowed: uniform, or prompts with tags"
                )
            out.setdefault(record["tag"], []).append(row)
        return out

    @cached_property
    def _places(self) -> list[str]:
        """The tags of one round, each as often as its share."""
        unknown = sorted(set(self.tag_shares) - set(self._tags))
        if unknown:
            raise UserError(
                f"tag_shares: no training prompt has the tag {', '.join(unknown)}; allowed: {', '.join(self._tags)}"
            )
        places = [tag for tag in self._tags for _ in range(self.tag_shares.get(tag, 1))]
        if not places:
            raise UserError(
                f"tag_shares: 0 for every tag of the training prompts; allowed: 1 for one of {', '.join(self._tags)}"
            )
        return places

    def conditioning(self, records: list[dict[str, Any]]) -> Conditioning:
        """Conditioning of records, one row each."""
        return self.cache.of(record["prompt"] for record in records)
