"""The real tokenizer classes with vocabularies made on the spot: one token for each of a few words, letters for the
rest, so that no text takes more of them than with the published vocabulary."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase

from rtdmd.common.files import read_json, write_json
from rtdmd.common.torch_setup import quiet_imports

with quiet_imports():
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer, Qwen2TokenizerFast, T5TokenizerFast

WORDS = [
    *("a", "photo", "of", "and", "two", "three", "four", "left", "right", "above", "below"),
    *("circle", "square", "triangle", "cross", "circles", "squares", "triangles", "crosses"),
    *("red", "green", "blue", "yellow"),
]
PRINTABLE = [chr(code) for code in range(33, 127)]
CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")
QWEN_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_CHAT = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
"""A template of the shape of Qwen3's."""
Merges = list[tuple[str, str]]


def bpe_merges(words: Iterable[Sequence[str]]) -> Merges:
    """Byte-pair merges, most frequent pair first, that make one token of each word, given in its smallest pieces."""
    pieces = [list(word) for word in words]
    merges: Merges = []
    while pairs := [pair for word in pieces for pair in pairwise(word)]:
        best = max(sorted(set(pairs)), key=pairs.count)
        merges.append(best)
        for word in pieces:
            for i in range(len(word) - 1, 0, -1):
                if tuple(word[i - 1 : i + 1]) == best:
                    word[i - 1 : i + 1] = ["".join(best)]
    return merges


def clip_vocabulary(words: Sequence[str] = WORDS) -> tuple[dict[str, int], Merges]:
    """Vocabulary and merges of CLIP's tokenizer: "!" is 0 and the end of a text the last, as in the published one."""
    merges = bpe_merges([*word[:-1], f"{word[-1]}</w>"] for word in words)
    tokens = [*PRINTABLE, *(f"{char}</w>" for char in PRINTABLE), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate([*dict.fromkeys(tokens), *CLIP_ENDS])}
    return vocabulary, merges


def clip_tokenizer(length: int, words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """A CLIPTokenizer that has one token for each of ``words`` and spells anything else in ASCII letters."""
    vocabulary, merges = clip_vocabulary(words)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)


def t5_tokenizer(words: Sequence[str] = ()) -> T5TokenizerFast:
    """A T5 tokenizer that has one piece for each of ``words`` and spells others in lower-case letters."""
    return T5TokenizerFast(vocab=_t5_pieces(words), extra_ids=0)


def _t5_pieces(words: Sequence[str]) -> list[tuple[str, float]]:
    whole = [(f"▁{word}", -1.0) for word in words if len(word) > 1]
    letters = [(letter, -3.0) for letter in ascii_lowercase]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -2.0), *letters, *whole]


def qwen_tokenizer(words: Sequence[str] = ()) -> Qwen2TokenizerFast:
    """A Qwen2 tokenizer that has one token for each of ``words`` after a blank, spells others in bytes and pads with
    <|endoftext|>, as FLUX.2's does."""
    vocabulary, merges = _qwen_vocabulary(words)
    vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(QWEN_MARKS)}
    return Qwen2TokenizerFast(
        vocab=vocabulary,
        merges=merges,
        eos_token="<|im_end|>",
        additional_special_tokens=list(QWEN_MARKS[:2]),
        chat_template=QWEN_CHAT,
    )


def _qwen_vocabulary(words: Sequence[str]) -> tuple[dict[str, int], Merges]:
    merges = bpe_merges(["Ġ", *word] for word in words)
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


def write_clip(folder: Path, words: Sequence[str], pad: str = "<|endoftext|>") -> int:
    """A CLIP tokenizer's folder in its published form, vocab.json and merges.txt; the number of its tokens."""
    vocabulary, merges = clip_vocabulary(words)
    start, end = CLIP_ENDS
    marks = {"bos_token": start, "eos_token": end, "pad_token": pad, "unk_token": end}
    about = marks | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    write_vocabulary(folder, vocabulary, merges)
    write_json(folder / "tokenizer_config.json", about)
    write_json(folder / "special_tokens_map.json", marks)
    return len(vocabulary)


def write_t5(folder: Path, words: Sequence[str]) -> int:
    """A T5 tokenizer's folder in its published form, spiece.model beside tokenizer.json; the number of its tokens."""
    tokenizer = t5_tokenizer(words)
    tokenizer.save_pretrained(folder)
    marks = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", marks)
    about = folder / "tokenizer_config.json"
    write_json(about, read_json(about) | {"model_max_length": 512})
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for piece, score in _t5_pieces(words):
        model.pieces.add(piece=piece, score=score)
    (folder / "spiece.model").write_bytes(model.SerializeToString(deterministic=True))
    return len(tokenizer)


def write_qwen(folder: Path, words: Sequence[str]) -> int:
    """A Qwen2 tokenizer's folder in its published form, the template in a file of its own; the number of its tokens."""
    tokenizer = qwen_tokenizer(words)
    tokenizer.save_pretrained(folder)
    vocabulary, merges = _qwen_vocabulary(words)
    write_vocabulary(folder, vocabulary, merges)
    added = {token: len(vocabulary) + i for i, token in enumerate(QWEN_MARKS)}
    marks = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": QWEN_MARKS[1:]}
    write_json(folder / "added_tokens.json", added)
    write_json(folder / "special_tokens_map.json", marks)
    about = folder / "tokenizer_config.json"
    write_json(about, read_json(about) | {"model_max_length": 131072})
    return len(tokenizer)


def write_vocabulary(folder: Path, vocabulary: dict[str, int], merges: Merges) -> None:
    """vocab.json and merges.txt of a byte-pair tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
