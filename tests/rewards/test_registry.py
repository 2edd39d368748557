"""What params may say of rewards: fields by scorer, folders, pinned Hub ids; and that held-out rewards stay apart."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from huggingface_hub import errors
from pydantic import ValidationError

from rtdmd.common.errors import UserError
from rtdmd.config import EvaluateParams, preset, reward_params
from rtdmd.evaluate.judge import load_judge
from rtdmd.rewards import weights
from rtdmd.rewards.registry import NAMES, REWARDS, load_reward

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_every_file_of_the_folder_is_a_scorer_by_its_name() -> None:
    files = sorted(path.stem for path in Path("rtdmd/rewards/scorers").glob("*.py") if path.stem != "__init__")
    assert list(NAMES) == files
    for name, reward in REWARDS.items():
        assert get_args(reward.settings.model_fields["name"].annotation) == (name,)
        assert {source.pin for source in reward.settings.sources.values()} <= set(reward.settings.model_fields)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "nima"}, "does not match any of the expected tags: 'aesthetic', 'clipscore'"),
        ({"name": "hpsv2", "model": "./a"}, r"hpsv2\.base\n +Field required"),
        ({"name": "clipscore", "model": "./a", "base": "./b"}, r"clipscore\.base\n +Extra inputs are not permitted"),
        ({"name": "world_verifier"}, r"world_verifier\.soft_weight\n +Field required"),
        (
            {"name": "clipscore", "model": "openai/clip"},
            r"revision: None with the Hub id 'openai/clip'.*\./openai/clip",
        ),
        ({"name": "clipscore", "model": "openai/clip", "revision": "main"}, "revision: 'main' with the Hub id"),
        ({"name": "clipscore", "model": "./a/b", "revision": COMMIT}, "which is not a Hub id; allowed: null"),
        ({"name": "clipscore", "model": "./a", "base_revision": COMMIT}, "base_revision\\n +Extra inputs"),
        ({"name": "ocr", "offload": True}, r"offload: True for ocr; allowed: null \(.*: ocr has none\)"),
        ({"name": "clipscore", "model": "./a", "socket": "s", "offload": True}, "offload: .*: its process has them"),
    ],
)
def test_wrong_entries_name_key_value_and_what_is_allowed(entry: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        reward_params(**entry)


def test_entries_with_folders_and_with_pinned_hub_ids_are_valid() -> None:
    plain = reward_params(name="pickscore", model="./pick")
    assert (plain.differentiable, plain.weight, plain.is_hub_id("model")) == (True, 1.0, False)
    hub = reward_params(name="hpsv2", model="xswu/HPSv2", revision=COMMIT, base="laion/x", base_revision=COMMIT)
    assert hub.is_hub_id("model") and hub.is_hub_id("base")


def test_relative_folders_start_from_the_root(tmp_path: Path) -> None:
    entry = reward_params(name="hpsv2", model="a/b/c", base=str(tmp_path / "base"))
    found = weights.on_this_machine(entry, tmp_path)
    assert found.model == str(tmp_path / "a/b/c") and found.base == str(tmp_path / "base")
    assert entry.model == "a/b/c"


def test_hub_ids_are_fetched_at_their_commit_and_only_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, revision: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return f"/cache/{repository}"

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    entry = reward_params(name="hpsv2", model="xswu/HPSv2", revision=COMMIT, base="laion/x", base_revision=COMMIT[::-1])
    found = weights.on_this_machine(entry, Path("."))
    assert (found.model, found.base) == ("/cache/xswu/HPSv2", "/cache/laion/x")
    assert asked[0] == ("xswu/HPSv2", COMMIT, ["HPS_v2.1_compressed.pt"])
    assert asked[1][:2] == ("laion/x", COMMIT[::-1]) and not any("safetensors" in pattern for pattern in asked[1][2])


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=r"rewards: clipscore: model: a/b at 0123.* not on this machine"):
        load_reward(reward_params(name="clipscore", model="a/b", revision=COMMIT))


def test_evaluations_rewards_are_its_own(tiny_clip: Path, tmp_path: Path) -> None:
    """A held-out reward: evaluated, and never among those that are trained on."""
    clip = {"name": "clipscore", "model": str(tiny_clip)}
    verifier = {"name": "world_verifier", "soft_weight": 0.5}
    changes = {
        "train_rtdmd": {"rewards": [verifier], "weights": {"backprop": 0.0}},
        "evaluate": {"rewards": [clip, verifier | {"soft_weight": 0.0}], "features_model": None},
    }
    params = preset("smoke", changes)
    assert [entry.name for entry in params.train_rtdmd.rewards] == ["world_verifier"]
    judge = load_judge(params.evaluate, torch.device("cpu"), tmp_path)
    assert list(judge.reward_models.rewards) == ["clipscore", "world_verifier"]
    assert judge.reward_models.rewards["world_verifier"].identity()["soft_weight"] == 0.0
    assert isinstance(params.evaluate, EvaluateParams)


def test_weights_files_that_are_none_are_errors(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "wrapped.pt")
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 cut short")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10")
    torch.save({"a": Path("x")}, tmp_path / "code.pt")
    assert list(weights.read_weights(tmp_path / "wrapped.pt")) == ["a"]
    with pytest.raises(UserError, match=r"here: .*list\.pt does not hold named tensors"):
        weights.read_weights(tmp_path / "list.pt", "here")
    for name, says in (
        ("broken.pt", "cannot be read as plain tensors"),
        ("broken.safetensors", r"is damaged \(no safetensors header in 1 bytes\); it lies outside this repository"),
        ("code.pt", "never loaded; it lies outside this repository: copy or download it there again"),
    ):
        with pytest.raises(UserError, match=f"^here: .*{name}.* {says}") as refusal:
            weights.read_weights(tmp_path / name, "here")
        assert "weights_only" not in str(refusal.value)
    with pytest.raises(UserError, match=r"here: .* has 4 files \*\.pt, which of them"):
        weights.file_in(tmp_path, "here", "none.bin", "*.pt")
