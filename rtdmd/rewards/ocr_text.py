"""What an image should say and how far it is from what was read: pure functions on strings for the ocr reward."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from rtdmd.common.errors import UserError

TARGET = "target"  # key of a prompt's metadata that holds the text, for prompts that do not quote it
_QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”')


def normalise(text: str) -> str:
    """Lower case without white space, as published (Flow-GRPO, RTDMD), after Unicode's compatibility form NFKC.

    Case goes because many typefaces, logos and signs have one case only. Spaces go because a line may be read as one
    piece or as several, and the pieces are joined without any. NFKC is ours: the published English recogniser cannot
    write a full-width "！", ours can, and it means "!".
    """
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def target_text(prompt: str, metadata: Mapping[str, Any] | None) -> str:
    """The text an image should show: metadata's "target", or else the first "..." (or “...”) of the prompt.

    Single quotes do not count: they are apostrophes. UserError where there is no text or nothing but white space.
    """
    if metadata is not None and TARGET in metadata:
        text = metadata[TARGET]
        if not isinstance(text, str):
            raise UserError(f"reward ocr: the prompt {prompt!r} has metadata {TARGET}: {text!r}; a text is expected")
    else:
        quoted = _QUOTED.search(prompt)
        if quoted is None:
            raise UserError(
                f"reward ocr: the prompt {prompt!r} has no text in double quotes and no metadata {TARGET!r}, "
                "so nothing says what to read; see prepare_prompts in params.yaml"
            )
        text = quoted[1] if quoted[1] is not None else quoted[2]
    if not normalise(text):
        raise UserError(f"reward ocr: the prompt {prompt!r} asks for the empty text {text!r}")
    return text


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: least number of characters to insert, delete or replace; O(|a| |b|) steps."""
    row = list(range(len(b) + 1))  # distances of a[:i] to each prefix of b
    for i, char in enumerate(a, start=1):
        corner = row[0]
        row[0] = i
        for j, other in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (char != other))
    return row[-1]


def text_score(target: str, found: str) -> float:
    """1 - edit distance / length of the target, after `normalise`, at least 0; 1 where the target stands inside.

    As published: other text in the image costs nothing once the target is there, and at most everything otherwise.
    """
    wanted = normalise(target)
    read = normalise(found)
    if wanted in read:
        return 1.0
    return max(0.0, 1 - edit_distance(wanted, read) / len(wanted))
