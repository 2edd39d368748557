"""GenEval 2's questions about a prompt (arXiv 2512.16853): what a record must hold, and how an answer may be spelt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rtdmd.common.errors import UserError

QUESTIONS = "vqa_list"
ASKED = "{question} Answer in one word."
"""What the model is asked, word for word (GenEval 2)."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Question:
    """What is asked, and the spellings of the right answer."""

    text: str
    answers: tuple[str, ...]


def questions_of(prompt: str, record: Mapping[str, Any]) -> list[Question]:
    """The questions of a record {"vqa_list": [[question, answer], ...]}, at least one.

    UserError that names the prompt, where the list is missing, empty or otherwise built, and where an answer is
    neither Yes, No nor a number from zero to ten.
    """
    found = record.get(QUESTIONS)
    if not isinstance(found, list) or not found or not all(_is_pair(item) for item in found):
        raise UserError(
            f'the prompt {prompt[:60]!r} needs a GenEval 2 record with "{QUESTIONS}", a list of [question, answer]'
        )
    return [Question(ASKED.format(question=text), _spellings(prompt, answer)) for text, answer in found]


def _is_pair(item: Any) -> bool:
    return isinstance(item, list | tuple) and len(item) == 2 and all(isinstance(text, str) and text for text in item)


def _spellings(prompt: str, answer: str) -> tuple[str, ...]:
    """A word small and capitalised, each also after a blank; of a number its digits too, alone and after a blank."""
    word = answer.strip().lower()
    word = NUMBERS[int(word)] if word in map(str, range(len(NUMBERS))) else word
    if word not in ("yes", "no", *NUMBERS):
        raise UserError(
            f"the prompt {prompt[:60]!r} has the answer {answer!r} in {QUESTIONS}; allowed: Yes, No, zero to ten"
        )
    words = (word, word.capitalize(), f" {word}", f" {word.capitalize()}")
    if word not in NUMBERS:
        return words
    digits = str(NUMBERS.index(word))
    return (*words, digits, f" {digits}")
