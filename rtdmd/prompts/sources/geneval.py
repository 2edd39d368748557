"""geneval: GenEval's prompts with their records, 553 to evaluate, read as the reward of that name reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from rtdmd.common.errors import UserError
from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.records import BadPrompt, Source
from rtdmd.prompts.registration import FileParams, Registration, Row
from rtdmd.rewards.geneval_rules import parse


class GenevalParams(FileParams):
    """GenEval's prompts with their records."""

    name: Literal["geneval"] = param("GenEval's prompts", source="arXiv 2310.11513")


def geneval_record(source: Source) -> Source:
    """The prompt with its tag and record, read as the reward reads them; BadPrompt where it could not."""
    metadata = source.metadata or {}
    record = {**metadata, "tag": metadata.get("tag", source.tag), "prompt": source.prompt}
    try:
        tag = parse(record, source.prompt).tag
    except UserError as error:
        raise BadPrompt("malformed", source.where, str(error)) from error
    return replace(source, tag=tag, metadata=record)


def _published(source: Source) -> list[Row]:
    return [{**(source.metadata or {}), "prompt": source.prompt}]


SOURCE = Registration(
    GenevalParams, file_reader(geneval_record), provides=("geneval",), tags=lambda _: 6, published=_published
)
