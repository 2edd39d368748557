"""prompts: any file of prompts."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.records import Source
from rtdmd.prompts.registration import FileParams, Registration, Row


class PromptsParams(FileParams):
    """Any file of prompts, whatever its records hold."""

    name: Literal["prompts"] = param("any file", source="ours")


def _published(source: Source) -> list[Row]:
    return [{"prompt": source.prompt, "tag": source.tag}]


SOURCE = Registration(PromptsParams, file_reader(), published=_published)
