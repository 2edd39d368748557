"""t2i_compbench: T2I-CompBench's prompts, one per line and a file per category."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.registration import FileParams, Registration


class T2iCompbenchParams(FileParams):
    """T2I-CompBench's prompts: bare prompts."""

    name: Literal["t2i_compbench"] = param("T2I-CompBench's prompts", source="arXiv 2307.06350")


SOURCE = Registration(T2iCompbenchParams, file_reader())
