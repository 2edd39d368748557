"""drawbench: DrawBench's 200 prompts; the column Category is the tag."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.records import Source
from rtdmd.prompts.registration import FileParams, Registration, Row


class DrawbenchParams(FileParams):
    """DrawBench's prompts: bare prompts."""

    name: Literal["drawbench"] = param("DrawBench's prompts", source="arXiv 2205.11487")


def _published(source: Source) -> list[Row]:
    return [{"Prompts": source.prompt, "Category": "Colors"}]


SOURCE = Registration(DrawbenchParams, file_reader(), published=_published)
