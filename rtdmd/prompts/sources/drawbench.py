"""drawbench: DrawBench's 200 prompts; the column Category is the tag."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.registration import FileParams, Registration


class DrawbenchParams(FileParams):
    """DrawBench's prompts: bare prompts."""

    name: Literal["drawbench"] = param("DrawBench's prompts", source="arXiv 2205.11487")


SOURCE = Registration(DrawbenchParams, file_reader())
