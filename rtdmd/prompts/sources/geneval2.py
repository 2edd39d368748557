"""geneval2: GenEval 2's 800 prompts with "vqa_list" and one entry of "skills" for each question (arXiv 2512.16853)."""

from __future__ import annotations

from typing import Literal

from rtdmd.common.errors import UserError
from rtdmd.common.section import param
from rtdmd.prompts.files import file_reader
from rtdmd.prompts.records import BadPrompt, Source
from rtdmd.prompts.registration import FileParams, Registration
from rtdmd.rewards.geneval2_questions import questions_of


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
        says = f'the prompt {source.prompt[:60]!r} needs "skills" with an entry for each question'
        raise BadPrompt("malformed", source.where, says)
    return source


SOURCE = Registration(Geneval2Params, file_reader(geneval2_record), provides=("geneval2",))
