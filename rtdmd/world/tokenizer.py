"""The world's CLIP tokenizer: the library's own class, with a vocabulary made from the captions' words.

Byte-pair merges build each caption word into one token; any other text still tokenizes, letter by letter.
"""

from __future__ import annotations

from transformers import CLIPTokenizer

from rtdmd.world.grammar import words

MAX_LENGTH = 13  # tokens: nine words, start and end, and room for the number and colour that wider captions carry
_END = "</w>"


def make_tokenizer() -> CLIPTokenizer:
    """A CLIPTokenizer whose end-of-text token has the largest id, as CLIP's has."""
    letters = sorted({chr(code) for code in range(33, 127)})
    tokens = letters + [letter + _END for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in sorted(
        words(), key=len, reverse=True
    ):  # a longer word's merges come first, so no shorter one splits it
        pieces = [*word[:-1], word[-1] + _END]
        left = pieces[0]
        for right in pieces[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
                tokens.append(left + right)
            left += right
    tokens = [*list(dict.fromkeys(tokens)), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)
