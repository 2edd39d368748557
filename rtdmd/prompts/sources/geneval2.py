"""geneval2: GenEval 2's 800 prompts with "vqa_list" and one entry of "skills" for each question (arXiv 2512.16853)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rtdmd.common.errors import UserError
from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.records import BadPrompt, Source
from rtdmd.prompts.registration import FileParams, Registration, Row
from rtdmd.rewards.geneval2_questions import NUMBERS, questions_of


class Geneval2Params(FileParams):
    """GenEval 2's prompts with their questions."""

    name: Literal["geneval2"] = param("GenEval 2's prompts", source="arXiv 2512.16853")


def geneval2_record(source: Source) -> Source:
    """The prompt as it is; BadPrompt where the reward could not ask about it."""
    metadata = source.metadata or {}
    try:
        questions = questions_of(source.prompt, metadata)
    except UserError as error:
        raise BadPrompt("malformed", source.where, str(error)) from error
    skills = metadata.get("skills")
    if not isinstance(skills, list) or len(skills) != len(questions):
        message = f'the prompt {source.prompt[:60]!r} needs "skills" with an entry for each question'
        raise BadPrompt("malformed", source.where, message)
    return source


def _published(source: Source) -> list[Row]:
    asked = [question for item in (source.metadata or {})["include"] for question in _questions(item)]
    skills = [skill for skill, _, _ in asked]
    row = {"prompt": source.prompt, "atom_count": len(asked), "vqa_list": [[what, right] for _, what, right in asked]}
    return [row | {"skills": skills}]


def _questions(item: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Skill, question and right answer about one object of a GenEval record."""
    name = item["class"]
    number = item["count"]
    asked = [("object", f"Is there a {name} in the image?", "Yes")]
    if number > 1:
        asked.append(("count", f"How many times is a {name} in the image?", NUMBERS[number]))
    if "color" in item:
        asked.append(("attribute", f"Is the {name} {item['color']}?", "Yes"))
    return asked


SOURCE = Registration(Geneval2Params, file_reader(geneval2_record), provides=("geneval2",), published=_published)
