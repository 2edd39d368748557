"""Whether the example's prompt fits what the teacher's text encoders read, told before anything runs.

diffusers cuts a longer one with a warning, which the gate refuses: at the end of a run. A local teacher's tokenizers
count it exactly; of a teacher on the Hub only the lengths of its family are known, so that only a prompt that is too
long by any count is refused here. Nothing of this needs torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json
from rtdmd.config.families import FAMILIES
from rtdmd.config.tree import Params

CLIP_WINDOW = 77  # tokens, of CLIP's text encoders
_BACK = "see model.teacher in params.yaml"
_PIECE = re.compile(r"[^\W\d_]+|\d|(?:[^\w\s]|_)+")  # CLIP cuts at least here


def check_prompt(params: Params, root: Path) -> None:
    """UserError where publish.prompt is longer than a text encoder's window. root: where a relative teacher starts."""
    model = params.model
    prompt = params.publish.prompt
    clip = FAMILIES[model.family].clip_tokenizers
    for part, longest in windows(params, root).items():
        if len(prompt.encode()) + 2 <= longest:  # a token is a byte at least, and two mark the ends
            continue
        count = _tokens(root / model.teacher / part / "tokenizer.json", prompt, part in clip)
        if count > longest:
            raise UserError(
                f"publish.prompt: {count} tokens or more with those that mark its ends, {model.teacher}'s {part} reads"
                f" {longest}; shorten it"
            )


def windows(params: Params, root: Path) -> dict[str, int]:
    """Tokens that each tokenizer of the teacher reads, by its folder's name."""
    model = params.model
    found: dict[str, int] = {}
    index = root / model.teacher / "model_index.json"
    parts = read_json(index, _BACK) if index.is_file() else {}
    for part in FAMILIES[model.family].clip_tokenizers:
        config = root / model.teacher / part / "tokenizer_config.json"
        told = read_json(config, _BACK) if config.is_file() else {}
        found[part] = min(CLIP_WINDOW, int(told.get("model_max_length", CLIP_WINDOW)))
    for part in FAMILIES[model.family].long_tokenizers:
        if model.is_hub_id or parts.get(part) not in (None, [None, None]):
            found[part] = model.max_sequence_length
    return found


def _tokens(file: Path, prompt: str, clip: bool) -> int:
    """Tokens of the prompt by a tokenizer's file; without one, as few as there can be."""
    if not file.is_file():
        return len(_PIECE.findall(prompt)) + 2 if clip else len(prompt.split()) + 1
    from tokenizers import Tokenizer

    read_json(file, _BACK)  # what is damaged is told before the library sees it
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return len(tokenizer.encode(prompt).ids)
