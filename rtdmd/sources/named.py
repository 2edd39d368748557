"""The prompt sets that have a name: what each line of one must hold, so that its reward finds what it needs.

pickscore, hpsv3 and drawbench are bare prompts (DrawBench's category is the tag). geneval carries GenEval's record,
geneval2 its questions, ocr the text that the picture must show. `prompts` is anything.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from rtdmd.prompts import BadPrompt, Source
from rtdmd.sources.files import Check

_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”")


def _as_it_is(source: Source) -> Source:
    return source


def geneval_record(source: Source) -> Source:
    """GenEval: a tag, and "include" with a class and a count for each object (arXiv 2310.11513)."""
    metadata = source.metadata or {}
    tag, include = metadata.get("tag", source.tag), metadata.get("include")
    if not isinstance(tag, str) or not isinstance(include, list) or not include:
        raise _misses(source, 'a GenEval record with "tag" and "include"')
    for part in ("include", "exclude"):
        items = metadata.get(part, [])
        if not isinstance(items, list) or not all(_is_object(item) for item in items):
            raise _misses(source, f'"class" (a text) and "count" (from 1) in every entry of "{part}"')
    for item in include:
        relation = item.get("position")
        if relation is not None and not _is_relation(relation, len(include)):
            raise _misses(source, f'"position": [relation, number of an entry of "include"], not {relation!r}')
    return replace(source, tag=tag, metadata={**metadata, "tag": tag, "prompt": source.prompt})


def _is_object(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("class"), str):
        return False
    count = item.get("count")
    return isinstance(count, int) and not isinstance(count, bool) and count >= 1


def _is_relation(value: Any, objects: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
        and 0 <= value[1] < objects
    )


def geneval2_record(source: Source) -> Source:
    """GenEval 2: "vqa_list" of question and answer, with one entry of "skills" for each (arXiv 2512.16853)."""
    metadata = source.metadata or {}
    questions, skills = metadata.get("vqa_list"), metadata.get("skills")
    if not isinstance(questions, list) or not questions or not all(_is_question(item) for item in questions):
        raise _misses(source, 'a GenEval 2 record with "vqa_list", a list of [question, answer]')
    if not isinstance(skills, list) or len(skills) != len(questions):
        raise _misses(source, '"skills" with an entry for each question')
    return source


def _is_question(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) and text for text in item)


def quoted_text(source: Source) -> Source:
    """OCR: the prompt quotes the text to show; it becomes metadata["text"] (several quotes are joined by a space)."""
    found = " ".join(straight or curly for straight, curly in _QUOTED.findall(source.prompt)).strip()
    if not found:
        raise _misses(source, "the text to show in double quotes")
    return replace(source, metadata={"text": found, **(source.metadata or {})})


def _misses(source: Source, what: str) -> BadPrompt:
    return BadPrompt("malformed", source.where, f"the prompt {source.prompt[:60]!r} needs {what}")


CHECKS: dict[str, Check] = {
    "prompts": _as_it_is,
    "pickscore": _as_it_is,
    "drawbench": _as_it_is,
    "hpsv3": _as_it_is,
    "geneval": geneval_record,
    "geneval2": geneval2_record,
    "ocr": quoted_text,
}
"""Name in params.yaml -> the source with what its lines must hold, or BadPrompt."""
