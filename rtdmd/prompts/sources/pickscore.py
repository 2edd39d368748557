"""pickscore: PickScore's prompts, one a line: 25 432 to train on, 2 048 to test."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.registration import FileParams, Registration


class PickscoreParams(FileParams):
    """PickScore's prompts: bare prompts."""

    name: Literal["pickscore"] = param("PickScore's prompts", source="arXiv 2305.01569")


SOURCE = Registration(PickscoreParams, file_reader())
