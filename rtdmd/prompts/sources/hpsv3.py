"""hpsv3: HPSv3's prompts, 1 024 to test."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.registration import FileParams, Registration


class Hpsv3Params(FileParams):
    """HPSv3's prompts: bare prompts."""

    name: Literal["hpsv3"] = param("HPSv3's prompts", source="arXiv 2508.03789")


SOURCE = Registration(Hpsv3Params, file_reader())
