"""`train_rtdmd` through its own run(root): exact resume, repeatable bytes, and every recipe and weighting."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import load_tensors, sha256_file
from rtdmd.config.presets import WORLD
from rtdmd.methods import METHODS
from rtdmd.methods.rtdmd import PUBLISHED
from rtdmd.rewards import reward_models
from rtdmd.rewards.scorers.world_verifier import WorldVerifier, WorldVerifierParams
from rtdmd.stages import train_acdmd, train_rtdmd
from rtdmd.train import adapters as roles_module
from rtdmd.train.engine.watch import Watch
from rtdmd.train.rollout import Rollout
from rtdmd.train.rtdmd import RtdmdTrainer
from tests.train.workshop import checkpoints, killed_at, results, rows_of
from tests.workspace import set_params

STAGE = "train_rtdmd"
WEIGHTS: dict[str, float] = WORLD["train_rtdmd"]["weights"]
CLIP_WEIGHT: float = WORLD["train_rtdmd"]["rewards"][0]["weight"]
# The verifier finds all that the tiny teacher draws wrong: here the policy gradient learns from CLIP's cosine too.
SEEN = [{key: value for key, value in spec.items() if key != "policy"} for spec in WORLD["train_rtdmd"]["rewards"]]
SIX = {
    "epochs": 6,
    "save_every": 2,
    "log_every": 4,
    "candidate_steps": [0, 1, 2],
    "trained_steps": 2,
    "rewards": SEEN,
    "watch": {"every": 3, "max_prompts": 2},
}
FILES = [
    "curves.csv",
    "generator.safetensors",
    "image_log.zip",
    "resolved.json",
    "scorers.json",
    "watched.csv",
    "watched_parses.csv",
]


def train(root: Path, changes: dict[str, Any], fresh: bool = True, **sections: Any) -> dict[str, bytes]:
    """Run the stage with smoke parameters and ``changes``; ``fresh``: without a checkpoint to go on from."""
    set_params(root, {STAGE: changes, **sections})
    if fresh:
        shutil.rmtree(root / ".rtdmd", ignore_errors=True)
    shutil.rmtree(root / "results" / STAGE, ignore_errors=True)
    train_rtdmd.run(root)
    return results(root, STAGE)


def curves(root: Path) -> list[dict[str, Any]]:
    return rows_of((root / "results" / STAGE / "curves.csv").read_bytes())


@pytest.fixture(scope="module")
def whole(root: Path) -> dict[str, bytes]:
    """Six epochs without interruption."""
    return train(root, SIX)


def test_two_runs_give_the_same_bytes_watched_or_not(root: Path, whole: dict[str, bytes]) -> None:
    """A head alone is what an unwatched run has to say; settings and their inputs differ in resolved.json. That a
    watched run repeats these two as well, the killed ones show."""
    assert sorted(whole) == FILES
    torch.manual_seed(77)  # whatever came before
    alone = train(root, SIX | {"watch": {"every": 0}})
    assert [name for name in FILES if alone[name] != whole[name]] == [
        "resolved.json",
        "watched.csv",
        "watched_parses.csv",
    ]
    assert alone["watched.csv"] == b"epoch\n" and len(alone["watched_parses.csv"].splitlines()) == 1
    assert [row["epoch"] for row in rows_of(whole["watched.csv"])] == [0, 3, 6]


@pytest.mark.parametrize("step", [1, 3])
def test_killed_and_resumed_is_the_uninterrupted_run(root: Path, whole: dict[str, bytes], step: int) -> None:
    with killed_at(RtdmdTrainer, step):
        train(root, SIX)
    assert results(root, STAGE) == {}
    assert train(root, SIX, fresh=False) == whole


@pytest.mark.parametrize("way", ["threads", "offload"])
def test_where_and_when_scorers_compute_changes_no_byte(
    root: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The verifier in a thread beside the last step; CLIP's weights fetched for each epoch."""
    rewards = [dict(entry) for entry in SEEN]
    if way == "threads":
        monkeypatch.setattr(reward_models, "has_thread", lambda spec, device: not spec.differentiable)
    else:
        rewards[0]["offload"] = True
    other = train(root, SIX | {"rewards": rewards})
    assert [name for name in FILES if other[name] != whole[name]] == ["resolved.json"] * (way == "offload")


def test_another_seed_is_another_run(root: Path, whole: dict[str, bytes]) -> None:
    other = train(root, SIX, run={"seed": 1, "threads": 1})
    same = [name for name in FILES if other[name] == whole[name]]
    assert same == ["image_log.zip", "scorers.json", "watched_parses.csv"]


def test_what_the_scorers_were_is_written_down(root: Path, whole: dict[str, bytes]) -> None:
    scorers = json.loads(whole["scorers.json"])
    weights = root / "data/world/clip/model.safetensors"
    assert scorers["clipscore"]["files"]["model.safetensors"] == sha256_file(weights)
    assert (scorers["clipscore"]["template"], scorers["clipscore"]["version"]) == ("{prompt}", 1)
    assert scorers["world_verifier"]["version"] == 1 and scorers.keys() == {"clipscore", "world_verifier"}


def test_curves_tell_what_happened(root: Path) -> None:
    train(root, SIX | {"log_every": 1})
    rows = curves(root)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert row["ratio_error"] == 0.0 and row["clip_fraction"] == 0.0  # one update a rollout: on policy
        assert row["grad_matching"] > 0 and row["grad_backprop"] > 0 and row["grad_reference_kl"] == 0
        assert 0 <= row["reward_world_verifier"] <= 1 and -1 <= row["reward_clipscore"] <= 1
        assert row["backprop"] == pytest.approx(3 - CLIP_WEIGHT * row["reward_clipscore"], abs=1e-4)  # margin 3
        assert row["generator_grad_norm"] <= sum(WEIGHTS.values()) + 1e-5  # unit norms under the weights
        assert row["fake_grad_norm"] > 0 and row["fake_ambient"] > 0


def test_stage_two_starts_at_stage_one_and_moves_a_little(root: Path) -> None:
    """The written adapter is stage two's alone, zero at the start, and stage one's file is left as it is."""
    before = (root / "results/train_acdmd/generator.safetensors").read_bytes()
    train(root, SIX | {"epochs": 1, "generator_optimizer": {"lr": 1e-3}, "ema_decay": 0.0})
    adapter, about = load_tensors(root / "results" / STAGE / "generator.safetensors")
    assert about == {"stage": STAGE, "mode": "lora", "rank": "4", "alpha": "8", "role": "generator"}
    moved = [value.abs().max().item() for name, value in adapter.items() if "lora_B" in name]
    assert 0 < max(moved) < 1.01e-3  # one AdamW step from zero
    assert (root / "results/train_acdmd/generator.safetensors").read_bytes() == before


def test_the_average_warms_up_as_the_public_codes_does(root: Path) -> None:
    """Every third, it is updated after the second and the fifth, with min((1 + n) / (10 + n), decay) to the power of
    its repeats; and killed in between."""
    changes = SIX | {"save_every": 1, "keep": 7, "ema_every": 3, "ema_warmup": True, "ema_repeats": 2}
    whole = train(root, changes | {"ema_decay": 0.3})
    weights, emas = checkpoints(root, "parameters"), checkpoints(root, "ema")
    assert len(weights) == 6
    second = 0.25**2 * emas[0] + (1 - 0.25**2) * weights[1]  # (1 + 2) / (10 + 2)
    fifth = 0.3**2 * second + (1 - 0.3**2) * weights[4]  # 6 / 15 is above the decay
    expected = [emas[0], second, second, second, fifth, fifth]
    for ema, own in zip(emas, expected, strict=True):
        assert (ema - own).abs().max() < 1e-7
    assert (emas[0] - weights[0]).abs().max() > 1e-5  # the start, which no update of the average has reached
    with killed_at(RtdmdTrainer, 3):
        train(root, changes | {"ema_decay": 0.3})
    assert train(root, changes | {"ema_decay": 0.3}, fresh=False) == whole


def test_on_stage_one_merged_with_a_new_fake_adapter(root: Path) -> None:
    """Killed and resumed too; the header tells it, and in float32 merging changes rounding alone."""
    changes = SIX | {"epochs": 3, "save_every": 1, "fake_adapter": "new"}
    whole = train(root, changes | {"stage_one_adapters": "merged"})
    merged, about = load_tensors(root / "results" / STAGE / "generator.safetensors")
    assert about["stage_one_adapters"] == "merged"
    (last,) = root.glob(".rtdmd/runs/*/step-00000003")
    fake = load_tensors(last / "fake_parameters.safetensors")[0]
    assert any(value.abs().max() < 0.01 for value in fake.values())  # B of a new adapter, three updates from zero
    with killed_at(RtdmdTrainer, 2):
        train(root, changes | {"stage_one_adapters": "merged"})
    assert train(root, changes | {"stage_one_adapters": "merged"}, fresh=False) == whole
    train(root, changes)
    stacked, about = load_tensors(root / "results" / STAGE / "generator.safetensors")
    assert "stage_one_adapters" not in about
    off = sum((merged[key] - stacked[key]).square().sum().item() for key in merged)
    moved = sum(value.square().sum().item() for key, value in stacked.items() if "lora_B" in key)
    assert 0 < off < 1e-4 * moved


def test_a_surrogate_reward_is_saved_and_goes_on(root: Path) -> None:
    """TDM-R1's settings, killed and resumed: the surrogate and its optimizer go on too."""
    changes = SIX | {"recipe": "tdm-r1", "epochs": 3, "save_every": 1, "log_every": 1} | METHODS["tdm-r1"].settings
    whole = train(root, changes)
    rows = curves(root)
    assert rows[0]["surrogate_order"] == 0.5 and rows[0]["surrogate_distance"] == 0  # at first it is the teacher
    assert all(row["surrogate_distance"] > 0 and row["grad_surrogate"] > 0 for row in rows[1:])
    with killed_at(RtdmdTrainer, 2):
        train(root, changes)
    assert train(root, changes, fresh=False) == whole


VARIANTS: dict[str, dict[str, Any]] = {
    "renoised, relative": {
        "last_step_from": "renoised",
        "backprop_at": "last_step",
        "matching_path": "last_step",
        "relative": {"liked": ["Realistic"], "disliked": ["Oil"]},
        "weights": {"awm": 0.5},
    },
    "no matching": {"weights": {"matching": 0.0}, "fake_updates_per_epoch": 0},
    "no backprop": {"weights": {"backprop": 0.0}, "share_noise": False, "drop_zero_advantage": False},
    "no policy": {"weights": {"policy": 0.0}, "gradient_scaling": "none"},
    "matching only": {"weights": {"policy": 0.0, "backprop": 0.0}},
    "reference": {"weights": {"reference_kl": 0.1}},
    "whole chain": {"matching_path": "whole_chain", "fake_samples": "data"},
    "matching as a reward": {"matching_path": "reward", "normalise_matching": False, "advantage_std": "none"},
    "paper": {
        "advantage_std": "group",
        "baseline": "leave_one_out",
        "subset_factor": True,
        "ema_every": 2,
        "fake_updates_per_epoch": 2,
        "consistency": {"weight": 0.1, "estimator": "one_sample", "kernel": "eta_star"},
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_setting_runs(root: Path, name: str) -> None:
    train(root, SIX | {"epochs": 2, "log_every": 1} | VARIANTS[name])
    rows = curves(root)
    assert len(rows) == 2 and all(row["generator_grad_norm"] > 0 and row["ratio_error"] == 0 for row in rows)
    weights = {"policy": 1.0, "matching": 1.0, "backprop": 1.0} | VARIANTS[name].get("weights", {})
    if name == "no policy":  # without unit norms both terms of the last step share a pass, and have no norm each
        assert all(row["grad_matching+backprop"] > 0 for row in rows)
        assert not any(term in row for row in rows for term in ("grad_matching", "grad_backprop"))
    else:
        assert all((row["grad_matching"] > 0) == (weights["matching"] > 0) for row in rows)
        assert all((row["grad_backprop"] > 0) == (weights["backprop"] > 0) for row in rows)
    if name == "matching only":
        assert all(row["generator_grad_norm"] == pytest.approx(WEIGHTS["matching"], rel=1e-4) for row in rows)
    if name == "reference":
        assert rows[0]["grad_reference_kl"] == 0 < rows[1]["grad_reference_kl"]
    assert all(("fake_ambient" in row) == (name != "no matching") for row in rows)


def test_the_published_recipe_runs(root: Path) -> None:
    train(root, {"recipe": "published", **PUBLISHED, "epochs": 7, "log_every": 1})
    rows = curves(root)
    assert len(rows) == 7 and all(row["ratio_error"] == 0.0 for row in rows)
    adapter, _ = load_tensors(root / "results" / STAGE / "generator.safetensors")
    moved = [value.abs().max().item() for name, value in adapter.items() if "lora_B" in name]
    assert 0 < max(moved) < 7 * 3.01e-6, moved  # averaged once, after the seventh update, at a rate of 3e-6


def test_full_mode_starts_from_stage_ones_weights_and_resumes(root: Path, tmp_path: Path) -> None:
    copied = tmp_path / "full"
    shutil.copytree(root, copied, symlinks=True)
    full = {"adapter": {"mode": "full"}, "publish": {"format": "merged"}}
    set_params(copied, full)
    train_acdmd.run(copied)
    whole = train(copied, {"epochs": 2, "save_every": 1}, **full)
    with killed_at(RtdmdTrainer, 1):
        train(copied, {"epochs": 2, "save_every": 1}, **full)
    assert train(copied, {"epochs": 2, "save_every": 1}, fresh=False, **full) == whole
    one, two = (load_tensors(copied / f"results/{s}/generator.safetensors")[0] for s in ("train_acdmd", STAGE))
    moved = [(two[name] - value).abs().max().item() for name, value in one.items()]
    assert 0 < max(moved) < 1e-3


def test_a_roll_out_that_the_policy_pass_does_not_repeat_stops_the_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RtdmdTrainer.roll_out

    def roll_out(*arguments: Any) -> Rollout:
        rollout = real(*arguments)
        return replace(rollout, means=[mean + 1e-2 for mean in rollout.means])

    monkeypatch.setattr(RtdmdTrainer, "roll_out", roll_out)
    with pytest.raises(
        RtdmdError, match=r"train_rtdmd stopped at epoch 0: the policy ratio differs from 1 by .* at the first"
    ):
        train(root, SIX)


VERDICT = WorldVerifierParams(name="world_verifier", soft_weight=0.5)


class Constant(WorldVerifier):
    """A reward that is the same for every image."""

    def score(self, images: Any, prompts: Any, metadata: Any) -> torch.Tensor:
        return torch.full((len(images),), 0.25)


def test_rewards_that_say_nothing_leave_the_last_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal rewards: no advantage, no policy gradient, and the other terms still train; where there are none, the
    generator stays where it was and the run goes on, until `require_signal` ends it."""
    monkeypatch.setattr(reward_models, "load_reward", lambda spec, device, root: Constant(VERDICT, device))
    monkeypatch.setattr(reward_models, "check_rewards", lambda rewards, root: None)  # it refuses constants
    only = [{"name": "world_verifier", "weight": 1.0, "soft_weight": 0.5}]
    train(root, SIX | {"epochs": 2, "log_every": 1, "rewards": only, "weights": {"backprop": 0.0}})
    for row in curves(root):
        assert row["reward_world_verifier"] == 0.25
        assert row["frac_nonzero_advantage"] == row["grad_policy"] == row["advantage_std"] == 0
        assert row["generator_grad_norm"] == pytest.approx(WEIGHTS["matching"], rel=1e-4)
    quick = {"epochs": 2, "log_every": 1, "watch": {"every": 2, "max_prompts": 1}}
    files = train(root, SIX | quick | {"rewards": only, "weights": {"backprop": 0.0, "matching": 0.0}})
    assert [row["generator_grad_norm"] for row in curves(root)] == [0.0, 0.0]
    trained = safetensors.torch.load(files["generator.safetensors"])
    assert sum(tensor.count_nonzero().item() for name, tensor in trained.items() if "lora_B" in name) == 0


def test_rewards_that_say_nothing_for_twenty_epochs_stop_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_models, "load_reward", lambda spec, device, root: Constant(VERDICT, device))
    monkeypatch.setattr(reward_models, "check_rewards", lambda rewards, root: None)
    only = [{"name": "world_verifier", "weight": 1.0, "soft_weight": 0.5}]
    quick = {"epochs": 30, "save_every": 8, "fake_updates_per_epoch": 0}
    with pytest.raises(RtdmdError) as caught:
        train(root, SIX | quick | {"rewards": only, "weights": {"backprop": 0.0}})
    text = str(caught.value)
    assert "train_rtdmd stopped at epoch 19: for 20 epochs no reward distinguished the images of a prompt" in text
    assert "(world_verifier is 0.25 on average)" in text and "the last good checkpoint is epoch 16 in" in text


def test_the_journal_says_more_than_the_curves(root: Path) -> None:
    train(root, SIX | {"log_every": 1})
    (run_dir,) = (root / ".rtdmd/runs").iterdir()
    steps = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    assert [step["epoch"] for step in steps] == [1, 2, 3, 4, 5, 6]
    for step, row in zip(steps, curves(root), strict=True):
        assert row == {name: float(f"{value:.8g}") for name, value in step.items() if "/" not in name}
        assert step["latent/std"] == pytest.approx(step["sample_std"])
        assert 0 <= step["image/saturated"] <= 1
        assert step["advantage/min"] <= step["advantage/mean"] <= step["advantage/max"]
        for name in ("clipscore", "world_verifier"):
            low, high = step[f"reward/{name}/min"], step[f"reward/{name}/max"]
            assert low <= step[f"reward_{name}"] <= high and 0 <= step[f"reward/{name}/frac_informative_groups"] <= 1
            assert (step[f"reward/{name}/std"] > 0) == (high > low)
        by_level = [value for name, value in step.items() if name.startswith("grad_policy/sigma=")]
        assert len(by_level) == 2 and min(by_level) > 0  # trained_steps
        assert step["machine/images_per_second"] * step["machine/seconds"] == pytest.approx(4)


def test_an_epoch_trains_the_drawn_steps_of_the_candidates(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    real = RtdmdTrainer.policy_gradient

    def policy_gradient(self: Any, rollout: Rollout, advantages: Any, trained: Any, *more: Any) -> Any:
        seen.append(tuple(trained))
        assert len(rollout.states) == 5 and len(rollout) == 4
        assert rollout.groups.tolist() == [0, 0, 1, 1]
        assert rollout.records[0]["prompt"] == rollout.records[1]["prompt"] != rollout.records[2]["prompt"]
        return real(self, rollout, advantages, trained, *more)

    monkeypatch.setattr(RtdmdTrainer, "policy_gradient", policy_gradient)
    train(root, SIX | {"epochs": 5, "candidate_steps": [0, 2], "trained_steps": 1})
    assert set(seen) == {(0,), (2,)} and len(seen) == 5


def test_a_non_finite_value_stops_the_run_with_step_name_and_checkpoint(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = roles_module.AdapterBank.velocity
    calls: list[str] = []

    def velocity(self: Any, role: str, *arguments: Any, **more: Any) -> torch.Tensor:
        calls.append(role)
        v = real(self, role, *arguments, **more)
        return v * float("nan") if role == "teacher" and calls.count("teacher") == 4 else v

    with monkeypatch.context() as patch, pytest.raises(RtdmdError) as caught:
        patch.setattr(roles_module.AdapterBank, "velocity", velocity)
        train(root, SIX)
    (run_dir,) = (root / ".rtdmd/runs").iterdir()
    assert str(caught.value) == (
        "train_rtdmd stopped at epoch 3: the teacher's projection y_teacher has 1296 non-finite values of 1296;"
        f" the last good checkpoint is epoch 2 in {run_dir}"
    )
    assert results(root, STAGE) == {}


@pytest.mark.parametrize(
    ("role", "name"),
    [("generator", "the generator's velocity at step 0"), ("fake", "the fake score's projection y_fake")],
)
def test_a_non_finite_role_is_named(root: Path, monkeypatch: pytest.MonkeyPatch, role: str, name: str) -> None:
    real = roles_module.AdapterBank.velocity

    def velocity(self: Any, which: str, *arguments: Any, **more: Any) -> torch.Tensor:
        v = real(self, which, *arguments, **more)
        return v * float("nan") if which == role else v

    monkeypatch.setattr(roles_module.AdapterBank, "velocity", velocity)
    monkeypatch.setattr(Watch, "before", lambda *_: {})  # which looks before the first step
    with pytest.raises(
        RtdmdError, match=rf"train_rtdmd stopped at epoch 0: {name} has \d+ non-finite .*; no checkpoint"
    ):
        train(root, SIX)


def test_a_stage_one_of_another_rank_is_refused(root: Path) -> None:
    with pytest.raises(
        UserError, match=r"results/train_acdmd/generator\.safetensors was trained with adapter\.rank: 4"
    ):
        train(root, SIX, adapter={"rank": 3})
