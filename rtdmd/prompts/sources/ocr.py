"""ocr: prompts that ask for a text, in double quotes or as metadata["target"], where it is put."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from rtdmd.common.errors import UserError
from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.records import BadPrompt, Source
from rtdmd.prompts.registration import FileParams, Registration, Row
from rtdmd.rewards.ocr_text import TARGET, target_text


class OcrParams(FileParams):
    """Prompts that quote a text to show."""

    name: Literal["ocr"] = param("prompts that quote a text", source="Flow-GRPO")


def shown_text(source: Source) -> Source:
    """The prompt with the text to show in its metadata; BadPrompt where there is none."""
    try:
        target = target_text(source.prompt, source.metadata)
    except UserError as error:
        raise BadPrompt("malformed", source.where, str(error)) from error
    return replace(source, metadata={**(source.metadata or {}), TARGET: target})


def _published(source: Source) -> list[Row]:
    name = (source.metadata or {})["include"][0]["class"]
    return [{"prompt": f'{source.prompt}, and a sign that says "{name}"'}]


SOURCE = Registration(OcrParams, file_reader(shown_text), provides=("ocr",), published=_published)
