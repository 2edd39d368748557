"""The prompt sets that have a name: what each line of one must hold, so that its reward finds what it needs.

pickscore, hpsv3 and drawbench are bare prompts (DrawBench's category is the tag). geneval carries GenEval's record,
geneval2 its questions, ocr the text that the picture must show. `prompts` is anything.
"""

from __future__ import annotations

from dataclasses import replace

from rtdmd.common.errors import UserError
from rtdmd.prompts.records import BadPrompt, Source
from rtdmd.prompts.sources.files import Check
from rtdmd.rewards.geneval2_questions import questions_of
from rtdmd.rewards.geneval_rules import parse
from rtdmd.rewards.ocr_text import TARGET, target_text


def _as_it_is(source: Source) -> Source:
    return source


def geneval_record(source: Source) -> Source:
    """GenEval: a tag and its record, read as the reward `geneval` reads it (arXiv 2310.11513)."""
    metadata = source.metadata or {}
    record = {**metadata, "tag": metadata.get("tag", source.tag), "prompt": source.prompt}
    try:
        tag = parse(record, source.prompt).tag
    except UserError as error:
        raise BadPrompt("malformed", source.where, str(error)) from error
    return replace(source, tag=tag, metadata=record)


def geneval2_record(source: Source) -> Source:
    """GenEval 2: "vqa_list" of question and answer, with one entry of "skills" for each (arXiv 2512.16853)."""
    metadata = source.metadata or {}
    try:
        questions = questions_of(source.prompt, metadata)
    except UserError as error:
        raise BadPrompt("malformed", source.where, str(error)) from error
    skills = metadata.get("skills")
    if not isinstance(skills, list) or len(skills) != len(questions):
        raise _misses(source, '"skills" with an entry for each question')
    return source


def shown_text(source: Source) -> Source:
    """OCR: the text to show, which the prompt quotes or its record names, as metadata["target"]."""
    try:
        target = target_text(source.prompt, source.metadata)
    except UserError as error:
        raise BadPrompt("malformed", source.where, str(error)) from error
    return replace(source, metadata={**(source.metadata or {}), TARGET: target})


def _misses(source: Source, what: str) -> BadPrompt:
    return BadPrompt("malformed", source.where, f"the prompt {source.prompt[:60]!r} needs {what}")


CHECKS: dict[str, Check] = {
    "prompts": _as_it_is,
    "pickscore": _as_it_is,
    "drawbench": _as_it_is,
    "hpsv3": _as_it_is,
    "geneval": geneval_record,
    "geneval2": geneval2_record,
    "ocr": shown_text,
}
"""Name in params.yaml -> the source with what its lines must hold, or BadPrompt."""
