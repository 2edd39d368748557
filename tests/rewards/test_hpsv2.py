"""hpsv2: weights in open_clip's layout, loaded into transformers' CLIP, against a plain evaluation of that layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from rtdmd.common.errors import UserError
from rtdmd.config import reward_params
from rtdmd.rehearse.reward_models.clip import write_vit_h
from rtdmd.rehearse.reward_models.open_clip import HPS, OpenClip, write_hps
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import load_reward
from rtdmd.rewards.scorers.hpsv2 import cleaned, from_open_clip
from tests.rewards.reward_checks import MEAN, NONE, PROMPTS, STD, check_scorer, pictures


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hps") / "base"
    write_vit_h(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hps") / "model"


@pytest.fixture(scope="module")
def original(model: Path) -> OpenClip:
    return write_hps(model, torch.float32)


@pytest.fixture(scope="module")
def reward(original: OpenClip, model: Path, base: Path) -> Reward:
    return load_reward(reward_params(name="hpsv2", model=str(model), base=str(base)))


def test_equals_a_plain_evaluation_of_the_original_layout(reward: Reward, original: OpenClip, base: Path) -> None:
    ids = CLIPTokenizer.from_pretrained(base)(PROMPTS, padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = (original.image((pictures() - MEAN) / STD) * original.text(ids)).sum(-1)
    assert (reward.score(pictures(), PROMPTS, NONE) - expected).abs().max() < 1e-6


# The pieces of CLIP's published vocabulary that the sentence below is made of, with their numbers.
PIECES = {
    **{"<|startoftext|>": 49406, "<|endoftext|>": 49407, "a</w>": 320, "corgi</w>": 31320, "'s</w>": 568},
    **{"head</w>": 1375, "or": 523, "he": 651, "ad</w>": 680, "cor": 851, "gi</w>": 4478},
    **{letter: number for number, letter in enumerate("'acdeghiors")},
    **{f"{letter}</w>": 100 + number for number, letter in enumerate("cdeghiors")},
}
MERGES = [("o", "r"), ("'", "s</w>"), ("h", "e"), ("a", "d</w>"), ("c", "or"), ("he", "ad</w>"), ("g", "i</w>")]


def test_prompts_are_cleaned_as_the_published_tokenizer_does() -> None:
    """Numbers of the published package: a typographic apostrophe is the plain one, which has a piece of its own."""
    tokenizer = CLIPTokenizer(vocab=PIECES, merges=[*MERGES, ("cor", "gi</w>")])
    assert tokenizer(cleaned("a corgi’s head")).input_ids == [49406, 320, 31320, 568, 1375, 49407]
    assert tokenizer("a corgi’s head").input_ids != [49406, 320, 31320, 568, 1375, 49407]


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("  A   Photo\nof ", "a photo of"),
        ("salt &amp; pepper", "salt & pepper"),
        ("&amp;lt;b&amp;gt;", "<b>"),
        ("“quoted”", '"quoted"'),
        ("cafÃ©", "café"),
        ("cafe\u0301", "café"),
        ("ﬁre", "fire"),
        ("ΟΔΟΣ", "οδος"),
    ],
)
def test_what_is_cleaned(prompt: str, read: str) -> None:
    assert cleaned(prompt) == read


def test_scores_are_those_of_the_cleaned_prompt(reward: Reward) -> None:
    raw, plain = (
        reward.score(pictures()[:1], [prompt], [None]) for prompt in ("a RED  circle’s edge", "a red circle's edge")
    )
    assert torch.equal(raw, plain) and reward.identity()["version"] == 2


def test_gradients_batches_and_identity(reward: Reward) -> None:
    check_scorer(reward, HPS)
    assert {"base/config.json", "base/tokenizer.json"} <= set(reward.identity()["files"])


def test_half_precision_files_are_computed_in_float32(
    original: OpenClip, reward: Reward, base: Path, tmp_path: Path
) -> None:
    torch.save({"state_dict": {k: v.half() for k, v in original.state_dict().items()}}, tmp_path / HPS)
    half = load_reward(reward_params(name="hpsv2", model=str(tmp_path), base=str(base)))
    difference = half.score(pictures(), PROMPTS, NONE) - reward.score(pictures(), PROMPTS, NONE)
    assert 0 < difference.abs().max() < 1e-2  # weights rounded to 11 bits, the arithmetic is not


def test_every_key_is_consumed(original: OpenClip, base: Path, tmp_path: Path) -> None:
    tensors = original.state_dict()
    assert len(from_open_clip(tensors)) == len(tensors) + 4 * (3 - 1) * 2  # in_proj becomes three, weight and bias
    more = {**tensors, "score_predictor.weight": torch.ones(2)}
    less = {k: v for k, v in tensors.items() if k != "visual.transformer.resblocks.1.attn.in_proj_bias"}
    other = {**tensors, "text_projection": torch.ones(16, 9)}
    for bad, message in (
        (more, r"unexpected: score_predictor\.weight"),
        (less, r"missing: vision_model\.encoder\.layers\.1\.self_attn\.k_proj\.bias"),
        (other, r"of another shape: text_projection\.weight"),
    ):
        torch.save({"state_dict": bad}, tmp_path / HPS)
        with pytest.raises(UserError, match=message):
            load_reward(reward_params(name="hpsv2", model=str(tmp_path), base=str(base)))


def test_a_base_of_another_activation_or_missing_files_are_errors(model: Path, tiny_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hidden_act \['quick_gelu'\], but these weights need 'gelu'"):
        load_reward(reward_params(name="hpsv2", model=str(model), base=str(tiny_clip)))
    with pytest.raises(UserError, match=r"hpsv2: base: .* is not a CLIP model folder; fetch one .*laion"):
        load_reward(reward_params(name="hpsv2", model=str(model), base=str(tmp_path)))


def test_the_file_is_read_without_running_what_is_in_it(base: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": Path("y")}}, tmp_path / HPS)  # a pickled object, not a tensor
    with pytest.raises(UserError, match=r"hpsv2: model: .* cannot be read as plain tensors"):
        load_reward(reward_params(name="hpsv2", model=str(tmp_path), base=str(base)))
