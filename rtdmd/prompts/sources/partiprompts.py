"""partiprompts: PartiPrompts, 1 632 prompts with challenge and note; the column Category is the tag."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.records import Source
from rtdmd.prompts.registration import FileParams, Registration, Row


class PartipromptsParams(FileParams):
    """PartiPrompts: bare prompts."""

    name: Literal["partiprompts"] = param("PartiPrompts", source="arXiv 2206.10789")


def _published(source: Source) -> list[Row]:
    return [{"Prompt": source.prompt, "Category": "Artifacts", "Challenge": "Simple Detail", "Note": ""}]


SOURCE = Registration(PartipromptsParams, file_reader(), published=_published)
