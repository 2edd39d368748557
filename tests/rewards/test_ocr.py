"""ocr on rendered text with the models of rapidocr's wheel, and its rules on strings."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from rtdmd.common.errors import NonFiniteError, UserError
from rtdmd.common.files import sha256_file
from rtdmd.config import reward_params
from rtdmd.rewards.ocr_text import edit_distance, normalise, target_text, text_score
from rtdmd.rewards.registry import load_reward
from rtdmd.rewards.scorers import ocr as ocr_module
from rtdmd.rewards.scorers.ocr import Ocr, OcrParams, model_files
from tools.ocr_benchmark import SIZES, WORDS, picture

TEXTS = ["Hello World", "STOP", "50% off"]
PROMPTS = [f'a sign that says "{text}"' for text in TEXTS]
NONE = [None] * 3


def rendered(*lines: str, size: int = 28) -> torch.Tensor:
    """(3, 128, 224): black text on white, one line under the other."""
    image = Image.new("RGB", (224, 128), "white")
    pen = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        pen.text((16, 16 + 48 * i), line, font=ImageFont.load_default(size=size), fill="black")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def reward() -> Ocr:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        loaded = Ocr(OcrParams(name="ocr"), torch.device("cpu"))
        loaded.read(rendered("load the models")[None])
    return loaded


def refuse(*_: object) -> None:
    raise AssertionError("something was fetched over the network")


def test_what_is_written_is_read_and_scores_one(reward: Ocr) -> None:
    images = torch.stack([rendered(text) for text in TEXTS])
    scores = reward.score(images, PROMPTS, NONE)
    assert scores.tolist() == [1, 1, 1] and scores.dtype == torch.float32
    assert [normalise(text) for text in reward.read(images)] == ["helloworld", "stop", "50%off"]


def test_a_wrong_letter_costs_its_share_and_an_empty_image_everything(reward: Ocr) -> None:
    images = torch.stack([rendered("Hallo World"), rendered("SHOP"), rendered()])
    assert reward.score(images, PROMPTS, NONE).tolist() == pytest.approx([0.9, 0.75, 0])


def test_lines_are_joined_from_top_to_bottom(reward: Ocr) -> None:
    images = torch.stack([rendered("Hello", "World"), rendered("World", "Hello")])
    scores = reward.score(images, [PROMPTS[0]] * 2, [None, None])
    assert scores[0] == 1 and scores[1] < 0.5


def test_a_batch_is_its_images_one_by_one_and_bytes_repeat(reward: Ocr) -> None:
    noisy = torch.stack([picture(i, 12, 0.3) for i in range(3)])
    prompts = [f'"{WORDS[i]}"' for i in range(3)]
    together = reward.score(noisy, prompts, NONE)
    alone = torch.cat([reward.score(noisy[i : i + 1], prompts[i : i + 1], [None]) for i in (2, 1, 0)]).flip(0)
    assert torch.equal(together, alone)


def test_colours_reach_the_reader_in_its_order(reward: Ocr, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Reader:
        txts = ()

    monkeypatch.setattr(reward, "_reader", lambda pixels: seen.append(pixels) or Reader())
    image = torch.zeros(1, 3, 32, 48)
    image[:, 0] = 1  # red
    reward.read(image)
    assert seen[0].shape == (32, 48, 3) and seen[0][0, 0].tolist() == [0, 0, 255] and seen[0].dtype == np.uint8


def test_identity_names_models_and_packages(reward: Ocr) -> None:
    identity = reward.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["files"] == {path.name: sha256_file(path) for path in model_files().values()}
    assert set(identity["packages"]) == {"rapidocr", "onnxruntime", "opencv-python-headless"}
    assert identity["settings"]["Det.limit_side_len"] == 960


def test_faults_are_errors_and_never_scores(reward: Ocr, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = torch.stack([rendered(text) for text in TEXTS])
    with pytest.raises(UserError, match=r"no text in double quotes.*prepare_prompts"):
        reward.score(images, [*PROMPTS[:2], "a cat"], NONE)
    with pytest.raises(ValueError, match="2 prompts"):
        reward.score(images, PROMPTS[:2], NONE)
    images[1, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="at image 1"):
        reward.score(images, PROMPTS, NONE)
    monkeypatch.setattr(ocr_module, "MODELS", {"Det": "gone.onnx"})
    with pytest.raises(UserError, match=r"gone\.onnx is not installed; `pip install"):
        model_files()


def test_loading_and_reading_nothing_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert Ocr(OcrParams(name="ocr"), torch.device("cpu")).read(torch.ones(1, 3, 64, 64)) == [""]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("prompt", "metadata", "target"),
    [
        ('a sign that says "New York"', None, "New York"),
        ('"One" and "Two"', None, "One"),
        ("a poster: “Café”", {}, "Café"),
        ('a sign "no"', {"target": "yes"}, "yes"),
        ("a dog's 'bone' in \"Bob's\" bowl", None, "Bob's"),
    ],
)
def test_target(prompt: str, metadata: dict[str, str] | None, target: str) -> None:
    assert target_text(prompt, metadata) == target


@pytest.mark.parametrize(
    ("prompt", "metadata", "message"),
    [
        ("a dog's 'bone'", None, "nothing says what to read"),
        ('an open " quote', None, "nothing says what to read"),
        ('a sign " "', None, "empty text ' '"),
        ("a sign", {"target": 3}, "target: 3; a text is expected"),
    ],
)
def test_no_target_is_an_error(prompt: str, metadata: dict[str, object] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        target_text(prompt, metadata)


def test_case_spaces_and_width_do_not_count() -> None:
    assert normalise(" Ｎew\tYORK ！") == "newyork!"
    assert text_score("New York!", "new\nYORK！") == 1


def test_score_by_hand() -> None:
    assert text_score("abcd", "abcd") == 1
    assert text_score("abcd", "abxd") == 0.75
    assert text_score("abcd", "acd") == 0.75
    assert text_score("abcd", "") == 0
    assert text_score("abcd", "there it is: abcd, and more") == 1
    assert text_score("abcd", "abc and nothing else") == 0  # 16 edits, the target's length at most
    assert text_score("abcd", "axbcd") == 0.75


def test_edit_distance_is_the_shortest_path_of_edits() -> None:
    """Against breadth-first search over single edits, for all words of up to three letters over two."""
    words = ["".join(letters) for n in range(4) for letters in itertools.product("ab", repeat=n)]

    def edits(word: str) -> set[str]:
        cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
        inserted = {head + c + tail for head, tail in cuts for c in "ab"}
        shorter = {head + tail[1:] for head, tail in cuts if tail}
        return inserted | shorter | {head + c + tail[1:] for head, tail in cuts if tail for c in "ab"}

    for start in words:
        reached, distance, frontier = {start: 0}, 0, {start}
        while frontier and distance < 3:
            distance += 1
            frontier = {w for old in frontier for w in edits(old)} - reached.keys()
            reached |= dict.fromkeys(frontier, distance)
        assert [edit_distance(start, word) for word in words] == [reached[word] for word in words]


def test_the_benchmark_draws_the_longest_words_inside_the_picture() -> None:
    assert len(WORDS) == len(set(WORDS)) == 200
    longest = sorted(range(200), key=lambda i: -len(WORDS[i]))[:30]
    pixels = torch.stack([picture(i, max(SIZES), 0.0) for i in longest])
    assert pixels[..., (0, -1), :].min() == 1 and pixels[..., :, (0, -1)].min() == 1
    assert pixels.flatten(1).min(1).values.max() < 0.1
    assert torch.equal(picture(3, 12, 0.2), picture(3, 12, 0.2))


def test_params_lead_to_it(reward: Ocr) -> None:
    found = load_reward(reward_params(name="ocr"))
    assert isinstance(found, Ocr) and found.identity() == reward.identity()
    assert reward_params(name="ocr").differentiable is found.differentiable is False
    with pytest.raises(ValueError, match=r"ocr\.model\n +Extra inputs"):
        reward_params(name="ocr", model="somewhere")
