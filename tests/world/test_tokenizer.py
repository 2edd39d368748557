"""The world's tokenizer: one token per word, letters for anything else, and room for the longest caption."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from rtdmd.common.rng import numpy_generator
from rtdmd.world.grammar import OTHER_NOUNS, auxiliary, captions, words
from rtdmd.world.tokenizer import MAX_LENGTH, make_tokenizer
from tools.world.text import random_caption


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return make_tokenizer()


def test_one_token_a_word_and_letters_otherwise(tokenizer: CLIPTokenizer) -> None:
    assert len(words()) == 23 + 2 * len(OTHER_NOUNS) == 71
    for word in words():
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    assert tokenizer.tokenize("zebu!") == ["z", "e", "b", "u</w>", "!</w>"]


def test_every_caption_fits(tokenizer: CLIPTokenizer) -> None:
    rng = numpy_generator(0, "tokenizer")
    prompts = [caption.prompt for caption in (*captions(), *auxiliary())]
    prompts += [random_caption(rng)[0] for _ in range(500)]
    lengths = [len(ids) for ids in tokenizer(prompts).input_ids]
    assert lengths == [len(prompt.split()) + 2 for prompt in prompts]
    assert max(lengths) == MAX_LENGTH == tokenizer.model_max_length


def test_the_end_of_text_has_the_largest_id_and_pads(tokenizer: CLIPTokenizer) -> None:
    """CLIPTextModel pools at the end-of-text token, which it finds as the largest id or by the config's id."""
    ids = tokenizer("a photo of a circle", padding="max_length").input_ids
    assert len(ids) == MAX_LENGTH and ids[0] == tokenizer.bos_token_id
    assert ids[6:] == [tokenizer.eos_token_id] * (MAX_LENGTH - 6)
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == max(ids)
    assert tokenizer.decode(ids[1:6]).split() == ["a", "photo", "of", "a", "circle"]


def test_it_survives_saving(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for prompt in ("a photo of two red circles above three blue crosses", "zebra crossings", ""):
        assert again(prompt, padding="max_length").input_ids == tokenizer(prompt, padding="max_length").input_ids
