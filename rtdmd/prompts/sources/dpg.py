"""dpg: DPG-Bench's 1 065 prompts from its table, which has a row for each question (ELLA, arXiv 2403.05135)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Literal

from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.records import Source
from rtdmd.prompts.registration import Facts, FileParams, Reading, Registration, Row

QUESTION = ("proposition_id", "dependency", "category_broad", "category_detailed", "tuple", "question_natural_language")


class DpgParams(FileParams):
    """DPG-Bench's prompts with their questions."""

    name: Literal["dpg"] = param("DPG-Bench's prompts", source="arXiv 2403.05135")


def one_a_prompt(rows: Sequence[Source]) -> list[Source]:
    """Rows that are about one prompt as one: its questions are a list under metadata["questions"]."""
    prompts: dict[str, Source] = {}
    for row in rows:
        record = dict(row.metadata or {})
        question = {key: record.pop(key) for key in QUESTION if key in record}
        first = prompts.setdefault(row.prompt, Source(row.prompt, row.tag, {**record, "questions": []}, row.where))
        questions: list[Any] = (first.metadata or {})["questions"]
        questions.append(question)
    return list(prompts.values())


def _read(params: DpgParams, reading: Reading) -> tuple[list[Source], Facts]:
    rows, facts = file_reader()(params, reading)
    return one_a_prompt(rows), facts


def _published(source: Source) -> list[Row]:
    """Two rows, of which the second one's question waits for the first one's answer."""
    about = {"item_id": f"made{zlib.crc32(source.prompt.encode())}", "text": source.prompt, "keywords": ""}
    name = (source.metadata or {})["include"][0]["class"]
    kinds = (("entity", "whole", f"Is there a {name}?"), ("attribute", "color", f"Is the {name} in colour?"))
    return [
        about
        | {
            "proposition_id": str(number),
            "dependency": str(number - 1),
            "category_broad": broad,
            "category_detailed": detailed,
            "tuple": f"{broad} - {detailed} ({name})",
            "question_natural_language": question,
        }
        for number, (broad, detailed, question) in enumerate(kinds, start=1)
    ]


SOURCE = Registration(DpgParams, _read, published=_published)
