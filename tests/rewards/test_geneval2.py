"""geneval2 on a tiny Qwen3-VL in the published layout: what transformers generates from it, and the arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_file
from rtdmd.config import RewardParams, reward_params
from rtdmd.rehearse.reward_models.geneval2 import published_weights, write_qwen3vl, write_weights
from rtdmd.rehearse.reward_models.qwenvl import token_id
from rtdmd.rewards.geneval2_questions import questions_of
from rtdmd.rewards.golden import check_rewards
from rtdmd.rewards.registry import load_reward
from rtdmd.rewards.scorers.geneval2 import GenEval2
from tests.rewards.reward_checks import waves

COUNT, RED = ["How many circles are in the image?", "four"], ["Are the circles red?", "Yes"]
RECORDS = [{"vqa_list": [COUNT, RED]}, {"vqa_list": [RED]}, {"vqa_list": [COUNT, COUNT, RED]}]
PROMPTS = ["four red circles", "red circles", "a photo of circles"]
FOUR = ("four", "Four", "Ġfour", "ĠFour", "4")
YES = ("yes", "Yes", "Ġyes", "ĠYes")


def pictures() -> Tensor:
    return torch.stack([waves(64, 96, shift) for shift in range(3)])


def params(folder: Path) -> RewardParams:
    return reward_params(name="geneval2", model=str(folder))


def loaded(folder: Path) -> GenEval2:
    reward = load_reward(params(folder))
    assert isinstance(reward, GenEval2)
    return reward


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("geneval2") / "qwen"
    write_qwen3vl(folder, "float32")
    return folder


@pytest.fixture(scope="module")
def reward(folder: Path) -> GenEval2:
    return loaded(folder)


def probability(scores: Tensor, spellings: Sequence[str]) -> float:
    return scores.double().softmax(-1)[[token_id(spelling) for spelling in spellings]].sum().item()


def test_equals_what_transformers_generates_first(reward: GenEval2, folder: Path) -> None:
    """One question at a time, by `generate`; then the geometric mean of the answers' probabilities."""
    from transformers import Qwen3VLForConditionalGeneration

    model = Qwen3VLForConditionalGeneration.from_pretrained(folder).eval()
    expected = []
    for image, record in zip(pictures(), RECORDS, strict=True):
        product = 1.0
        for question, answer in record["vqa_list"]:
            inputs = reward.chat(image[None], [f"{question} Answer in one word."])
            one = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": token_id("<|endoftext|>")}
            out = model.generate(**inputs, **one, output_scores=True, return_dict_in_generate=True)
            product *= probability(out.scores[0][0], FOUR if answer == "four" else YES)
        expected.append(product ** (1 / len(record["vqa_list"])))
    scores = reward.score(pictures(), PROMPTS, RECORDS)
    assert scores.shape == (3,) and scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)  # float32 sums of tens of terms
    assert len(set(scores.tolist())) == 3


def said(rows: Sequence[dict[str, float]], words: int) -> Callable[[Tensor], Tensor]:
    """The next word's logits from probabilities made by hand, a row per question."""
    logits = torch.full((len(rows), words), -1e4)
    for row, known in enumerate(rows):
        for token, value in known.items():
            logits[row, token_id(token)] = torch.tensor(value).log()
    return lambda hidden: logits[: len(hidden)]


def test_the_score_of_hand_made_answers(reward: GenEval2, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half and 0.32 make 0.4: all spellings of the number count, once; a bare blank, a part of " 4", does not."""
    number = {"four": 0.2, "Ġfour": 0.1, "Four": 0.05, "ĠFour": 0.05, "4": 0.1, "Ġ": 0.3, "three": 0.2}
    colour = {"Yes": 0.3, "yes": 0.02, "No": 0.68}
    head = reward.model.lm_head
    monkeypatch.setattr(head, "forward", said([number, colour], head.out_features))
    (answers,) = reward.answers(pictures()[:1], PROMPTS[:1], RECORDS[:1])
    assert answers.exp().tolist() == pytest.approx([0.5, 0.32], rel=1e-5)
    assert reward.score(pictures()[:1], PROMPTS[:1], RECORDS[:1]).item() == pytest.approx(0.4, rel=1e-5)
    monkeypatch.setattr(head, "forward", said([{"Ġfour": 1.0}, {"No": 1.0}], head.out_features))
    assert reward.score(pictures()[:1], PROMPTS[:1], RECORDS[:1]).item() == 0  # one wrong answer, and nothing is left


def test_the_public_code_adds_up_first_tokens_in_half_precision(
    folder: Path, reward: GenEval2, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bare blank that " 4" begins with counts as an answer there: 0.8 in the place of 0.5."""
    public = load_reward(params(folder).model_copy(update={"answers": "first_token", "precision": "float16"}))
    assert isinstance(public, GenEval2) and public.model.dtype == torch.float16
    full, half = (one.score(pictures(), PROMPTS, [{"vqa_list": [RED]}] * 3) for one in (reward, public))
    assert 0 < (half / full - 1).abs().max() < 0.01  # of 11 bits
    number = {"four": 0.2, "Ġfour": 0.1, "Four": 0.05, "ĠFour": 0.05, "4": 0.1, "Ġ": 0.3, "three": 0.2}
    monkeypatch.setattr(public.model.lm_head, "forward", said([number], public.model.lm_head.out_features))
    assert public.score(pictures()[:1], ["a"], [{"vqa_list": [COUNT]}]).item() == pytest.approx(0.8, rel=1e-5)
    assert public.identity() == reward.identity() | {"answers": "first_token", "precision": "float16"}


def test_a_batch_is_its_images_and_questions_one_by_one(reward: GenEval2) -> None:
    """Padding to the longest question changes nothing beyond rounding."""
    together = reward.score(pictures(), PROMPTS, RECORDS)
    alone = [reward.score(pictures()[i : i + 1], PROMPTS[i : i + 1], RECORDS[i : i + 1]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
    (both,) = reward.answers(pictures()[:1], PROMPTS[:1], RECORDS[:1])
    single = [reward.answers(pictures()[:1], ["x"], [{"vqa_list": [pair]}])[0] for pair in (COUNT, RED)]
    assert (both - torch.cat(single)).abs().max() < 1e-5


def test_image_and_questions_count_and_the_prompt_does_not(reward: GenEval2) -> None:
    record = {"vqa_list": [RED]}
    images = pictures()[[0, 0, 1]].requires_grad_()
    scores = reward.score(images, ["a", "b", "a"], [record] * 3)
    assert scores[0] == scores[1] and abs(scores[0] / scores[2] - 1) > 1e-3 and not scores.requires_grad
    no = reward.score(pictures()[:1], ["a"], [{"vqa_list": [[RED[0], "No"]]}])
    assert abs(no / scores[0] - 1) > 1e-3


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({}, r'the prompt \'a dog\' needs a GenEval 2 record with "vqa_list", a list of \[question, answer\]'),
        ({"vqa_list": []}, "needs a GenEval 2 record"),
        ({"vqa_list": [["Is there a dog?", ""]]}, "needs a GenEval 2 record"),
        ({"vqa_list": [["What is it?", "a dog"]]}, "has the answer 'a dog' in vqa_list; allowed: Yes, No, zero to ten"),
        ({"vqa_list": [["How many?", "11"]]}, "has the answer '11'"),
    ],
)
def test_a_record_without_questions_is_an_error(reward: GenEval2, record: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        reward.score(pictures()[:1], ["a dog"], [record])
    with pytest.raises(UserError, match="reward geneval2 needs metadata, but the prompt 'a dog' has none"):
        reward.score(pictures()[:1], ["a dog"], [None])


def test_spellings_of_answers() -> None:
    pairs = [["Q?", "Yes"], ["Q?", "four"], ["Q?", "4"], ["Q?", "Ten"]]
    yes, four, digit, ten = questions_of("a dog", {"vqa_list": pairs})
    assert yes.text == "Q? Answer in one word." and yes.answers == ("yes", "Yes", " yes", " Yes")
    assert four.answers == digit.answers == ("four", "Four", " four", " Four", "4", " 4")
    assert ten.answers[-2:] == ("10", " 10")


def test_every_key_is_consumed(tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    good = published_weights(write_qwen3vl(folder))
    bias, norm = "model.visual.blocks.1.norm2.bias", "model.language_model.norm.weight"
    for change, says in (
        ({bias: None}, rf"are not this model's; missing: {bias}; it lies"),
        ({"model.visual.extra": torch.zeros(1)}, r"are not this model's; unexpected: model\.visual\.extra; it"),
        (
            {norm: torch.zeros(3)},
            r"geneval2: model: .*; of another shape: .*language_model\.norm\.weight",
        ),
    ):
        tensors = {name: tensor for name, tensor in (good | change).items() if tensor is not None}
        write_weights(folder, tensors)
        with pytest.raises(UserError, match=says):
            load_reward(params(folder))
    write_weights(folder, good)
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors is damaged \(no safetensors header"):
        load_reward(params(folder))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    write_qwen3vl(folder)
    (folder / "tokenizer.json").unlink()
    words = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({{"Yes": "Yfs"}.get(word, word): i for word, i in words.items()}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match="its tokenizer cuts 'yes' into several tokens"):
        loaded(folder).score(pictures()[:1], ["a"], [{"vqa_list": [RED]}])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen3_vl_moe"}))
    with pytest.raises(UserError, match=r"model: .* holds a 'qwen3_vl_moe' model, not a 'qwen3_vl' one"):
        load_reward(params(folder))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"geneval2: model: .* has no config\.json"):
        load_reward(params(folder))


def test_weights_keep_their_precision_and_are_identified(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reward = loaded(folder)
    identity = reward.identity()
    assert capfd.readouterr() == ("", "")
    shard = "model-00001-of-00002.safetensors"
    assert identity["files"][shard] == sha256_file(folder / shard)
    assert identity["files"].keys() >= {"config.json", "preprocessor_config.json", "vocab.json", "merges.txt"}
    assert identity["template"] == "{question} Answer in one word." and identity["version"] == 1
    assert json.loads(json.dumps(identity)) == identity
    assert not any(p.requires_grad for p in reward.model.parameters()) and not reward.model.training
    assert {p.dtype for p in reward.model.parameters()} == {torch.float32}
    half = tmp_path / "half"
    write_qwen3vl(half)
    rough = loaded(half)
    assert {p.dtype for p in rough.model.parameters()} == {torch.bfloat16}
    ratio = rough.score(pictures(), PROMPTS, RECORDS) / reward.score(pictures(), PROMPTS, RECORDS)
    assert 0 < (ratio - 1).abs().max() < 0.1  # weights of 8 bits


def test_the_golden_check_tries_it(reward: GenEval2, tmp_path: Path) -> None:
    (path,) = check_rewards([reward], tmp_path)
    assert path.name.startswith("geneval2-") and check_rewards([reward], tmp_path) == []
