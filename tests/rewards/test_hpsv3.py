"""hpsv3 on a tiny model in the published layout: as the published package, as transformers reads the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_bytes, sha256_file
from rtdmd.config import RewardParams, reward_params
from rtdmd.rehearse.reward_models.hpsv3 import published_weights, write_hpsv3
from rtdmd.rehearse.reward_models.qwenvl import write_qwen2vl
from rtdmd.rewards.hpsv3_instruction import INSTRUCTION
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import load_reward
from tests.rewards.reward_checks import waves

SMALL = 16 * 28 * 28  # pixels: 16 image tokens instead of 256, to be quick
PROMPTS = ["a photo of red circles", "red", 'red {x} "circles"' * 3]
NONE = [None] * 3


def pictures() -> Tensor:
    return torch.stack([waves(64, 96, shift) for shift in range(3)])


def params(folder: Path) -> RewardParams:
    return reward_params(name="hpsv3", model=str(folder / "model"), base=str(folder / "base"))


def written(folder: Path, dtype: str = "float32") -> Path:
    """Folders `model` and `base`."""
    write_hpsv3(folder / "model", torch.float32)
    write_qwen2vl(folder / "base", dtype)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("hpsv3"))


@pytest.fixture(scope="module")
def small(folder: Path) -> Reward:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rtdmd.rewards.scorers.hpsv3.PIXELS", SMALL)
        return load_reward(params(folder))


# (size, prompt, picture): (mean, spread) in float32, mean in bfloat16; from hpsv3 1.0.0 with transformers 4.45.2
PUBLISHED = {
    ((512, 512), "a photo of red circles", 0): (0.4343377351760864, 0.23588630557060242, 0.4361889362335205),
    ((512, 512), "a photo of red circles", 1): (0.09616558253765106, 0.49397504329681396, 0.10613009333610535),
    ((100, 220), 'red {x} "circles"' * 9, 0): (0.1604541689157486, 1.031873345375061, 0.14299140870571136),
}


def test_equals_the_published_package(folder: Path) -> None:
    """The whole way: 8-bit resizing, instruction, chat template, text-like positions, head."""
    reward = load_reward(params(folder))
    for ((height, width), prompt, shift), (mean, spread, _) in PUBLISHED.items():
        image = waves(height, width, shift)[None]
        assert reward.score(image, [prompt], [None]).item() == pytest.approx(mean, abs=1e-5)
        inputs = reward.chat(image, [INSTRUCTION.format(text_prompt=prompt)])  # type: ignore[attr-defined]
        both = reward.model(inputs)  # type: ignore[attr-defined]
        assert both[0].tolist() == pytest.approx([mean, spread], abs=1e-5)
        grid = {512: [1, 32, 32], 100: [1, 22, 48]}[height]
        assert inputs["image_grid_thw"].tolist() == [grid]


def test_equals_the_published_package_in_its_own_precision(tmp_path: Path) -> None:
    """bfloat16 as published: ours is within 0.0093 of it, by the rounding of another order of sums (the package's own
    score moves by 0.002 when it batches); with exact rotary frequencies it would be 0.013 to 0.025 away.
    """
    reward = load_reward(params(written(tmp_path / "x", "bfloat16")))
    for ((height, width), prompt, shift), (_, _, mean) in PUBLISHED.items():
        score = reward.score(waves(height, width, shift)[None], [prompt], [None])
        assert score.dtype == torch.float32 and score.item() == pytest.approx(mean, abs=0.012)
    body, head = reward.model.body, reward.model.head  # type: ignore[attr-defined]
    assert {p.dtype for p in body.parameters()} == {torch.bfloat16}
    assert body.language_model.rotary_emb.inv_freq.dtype == torch.bfloat16
    assert {p.dtype for p in head.parameters()} == {torch.float32}


def test_equals_transformers_reading_of_the_same_weights(small: Reward, folder: Path, tmp_path: Path) -> None:
    """Its own translation of the published names, its class for generation, and the head written out."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    weights = published_weights()
    head = {name: weights.pop(name) for name in list(weights) if name.startswith("rm_head")}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "base" / "config.json").read_text())
    config["vocab_size"] = len(weights["lm_head.weight"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Qwen2VLConfig.from_pretrained(tmp_path).text_config.vocab_size == config["vocab_size"]
    model = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path).eval()
    expected = []
    for i, prompt in enumerate(PROMPTS):
        inputs = small.chat(pictures()[i : i + 1], [INSTRUCTION.format(text_prompt=prompt)])  # type: ignore[attr-defined]
        length = inputs["input_ids"].shape[1]
        with torch.no_grad():
            out = model(**inputs, position_ids=torch.arange(length).expand(3, 1, -1), output_hidden_states=True)
        x = out.hidden_states[-1][0, inputs["input_ids"][0].tolist().index(small.reward_token)]  # type: ignore[attr-defined]
        for layer in (0, 3, 5):
            x = head[f"rm_head.{layer}.weight"] @ x + head[f"rm_head.{layer}.bias"]
            x = x.relu() if layer < 5 else x
        expected.append(x[0].item())
    scores = small.score(pictures(), PROMPTS, NONE)
    assert scores.shape == (3,) and scores.dtype == torch.float32
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert scores.max() - scores.min() > 0.05


def test_a_batch_is_its_images_one_by_one(small: Reward) -> None:
    together = small.score(pictures(), PROMPTS, NONE)
    alone = torch.cat([small.score(pictures()[i : i + 1], PROMPTS[i : i + 1], [None]) for i in range(3)])
    assert (together - alone).abs().max() < 1e-5


def test_image_and_prompt_both_count(small: Reward) -> None:
    same = small.score(pictures()[[0, 0, 1]], ["red", "photo", "red"], NONE)
    assert abs(same[0] - same[1]) > 1e-3 and abs(same[0] - same[2]) > 1e-3
    assert not small.score(pictures().requires_grad_(), PROMPTS, NONE).requires_grad


def test_the_instruction_is_the_published_one() -> None:
    """The hash was taken from hpsv3 1.0.0's own INSTRUCTION + prompt_with_special_token."""
    published = "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"
    assert sha256_bytes(INSTRUCTION.encode()) == published


def rewrite(folder: Path, change: dict[str, Tensor | None]) -> Path:
    """The folder's weights with some tensors replaced, or removed where None."""
    tensors: dict[str, Tensor | None] = dict(published_weights()) | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model" / "HPSv3.safetensors")
    return folder


def test_every_key_is_consumed(tmp_path: Path) -> None:
    folder = written(tmp_path / "x")
    with pytest.raises(UserError, match=r"missing: body\.visual\.blocks\.1\.norm2\.bias"):
        load_reward(params(rewrite(folder, {"visual.blocks.1.norm2.bias": None})))
    with pytest.raises(UserError, match=r"unexpected: base_model\.lora"):
        load_reward(params(rewrite(folder, {"base_model.lora": torch.zeros(1)})))
    with pytest.raises(UserError, match=r"of another shape: body\.language_model\.norm\.weight"):
        load_reward(params(rewrite(folder, {"model.norm.weight": torch.zeros(3)})))
    with pytest.raises(UserError, match=r"have no rm_head\.3\.weight"):
        load_reward(params(rewrite(folder, {"rm_head.3.weight": None})))
    with pytest.raises(UserError, match=r"no model\.embed_tokens\.weight"):
        load_reward(params(rewrite(folder, {"model.embed_tokens.weight": None})))
    assert load_reward(params(rewrite(folder, {"lm_head.weight": None}))).name == "hpsv3"


def test_other_files_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "x")
    shorter = published_weights()["model.embed_tokens.weight"][:-1].contiguous()
    with pytest.raises(UserError, match=r"1308 words, .* the place 1308; HPSv3 is based on Qwen/Qwen2-VL-7B-Instruct"):
        load_reward(params(rewrite(folder, {"model.embed_tokens.weight": shorter})))
    (folder / "base" / "chat_template.json").unlink()
    with pytest.raises(UserError, match=r"hpsv3: base: .* has no chat_template"):
        load_reward(params(folder))
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    with pytest.raises(UserError, match=r"base: .* holds a 'qwen3_vl' model, not a 'qwen2_vl' one"):
        load_reward(params(folder))
    (folder / "model" / "HPSv3.safetensors").unlink()
    with pytest.raises(UserError, match=r"hpsv3: model: .* has no HPSv3\.safetensors"):
        load_reward(params(folder))


def test_a_prompt_cannot_bring_the_models_own_marks(small: Reward) -> None:
    with pytest.raises(UserError, match=r"prompt 'a <\|Reward\|>' holds <\|Reward\|>, where the score is read"):
        small.score(pictures()[:1], ["a <|Reward|>"], [None])
    with pytest.raises(UserError, match=r"brings its own <\|image_pad\|>"):
        small.score(pictures()[:1], ["<|image_pad|>"], [None])
    with pytest.raises(ValueError, match="2 prompts"):
        small.score(pictures(), PROMPTS[:2], NONE)
    with pytest.raises(ValueError, match="not finite"):
        small.score(pictures() * float("nan"), PROMPTS, NONE)


def test_weights_are_frozen_and_identified(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reward = load_reward(params(folder))
    identity = reward.identity()
    assert capfd.readouterr() == ("", "")
    assert identity["files"]["HPSv3.safetensors"] == sha256_file(folder / "model" / "HPSv3.safetensors")
    assert identity["files"].keys() >= {
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "chat_template.json",
    }
    assert identity["name"] == "hpsv3" and identity["version"] == 1 and "f6ee57479d4e" in identity["template"]
    assert json.loads(json.dumps(identity)) == identity
    assert not any(p.requires_grad for p in reward.model.parameters())  # type: ignore[attr-defined]
