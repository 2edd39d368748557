"""Best student and early stop: the choice itself, and through `train_rtdmd` with resume."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors
from rtdmd.common.images import PADDING
from rtdmd.config.validation import ValidationParams
from rtdmd.stages import train_rtdmd
from rtdmd.train.distributed.ranks import Ranks
from rtdmd.train.engine.trackers import VARIABLE
from rtdmd.train.engine.validation import Validation, group_diversity
from rtdmd.train.learner import EMA
from rtdmd.train.rtdmd import RtdmdTrainer
from tests.train.workshop import killed_at, results, rows_of
from tests.workspace import set_params

STAGE = "train_rtdmd"
SETTINGS = {"every": 2, "prompts": 3, "images": 2, "min_diversity": 0.0, "patience": 0}
SIX = {"epochs": 6, "save_every": 2, "log_every": 1, "generator_optimizer": {"lr": 0.01}, "ema_decay": 0.5}


def by_hand(figures: list[tuple[float, float]], **changes: Any) -> Validation:
    """A validation whose figures are given; the average holds the number of epochs done."""
    ema = EMA([torch.nn.Parameter(torch.zeros(1))], 0.9)
    p = ValidationParams(**SETTINGS | {"every": 1} | changes)
    validation = Validation(p, SimpleNamespace(ema=ema, ranks=Ranks()), [], None)  # type: ignore[arg-type]
    coming = iter(figures)
    validation.measure = lambda: next(coming)  # type: ignore[method-assign]
    return validation


def follow(validation: Validation, epochs: int) -> list[float]:
    """The best epoch after each of ``epochs``, up to an early stop."""
    assert validation.before(0).keys() == {"validation/start_reward", "validation/start_diversity"}
    best = []
    for done in range(1, epochs + 1):
        validation.trainer.ema.tensors[0].fill_(done)
        best.append(validation.after(done)["validation_best"])
        if validation.should_stop():
            break
    return best


def test_the_best_is_the_largest_reward_that_keeps_diversity() -> None:
    """0.9 comes with a diversity of 0.7, below 0.8 of 1.0: it is not taken."""
    figures = [(0.5, 1.0), (0.6, 0.95), (0.9, 0.7), (0.55, 1.2), (0.7, 0.8)]
    validation = by_hand(figures, min_diversity=0.8)
    assert follow(validation, 4) == [1, 1, 1, 4]
    validation.trainer.ema.tensors[0].fill_(9.0)
    assert validation.restore_best() == {"epoch": "4"}
    assert validation.trainer.ema.tensors[0].item() == 4.0


def test_where_nothing_is_better_the_stage_one_student_stays_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    validation = by_hand([(0.5, 1.0), (0.5, 1.0), (0.4, 1.0)])
    assert follow(validation, 2) == [0, 0]
    assert validation.restore_best() == {"epoch": "0"} and validation.trainer.ema.tensors[0].item() == 0.0
    assert "generator.safetensors is stage one's student, unchanged (train_rtdmd.validation)" in capsys.readouterr().err


def test_patience_counts_validations_since_the_best() -> None:
    figures = [(0.5, 1.0), (0.4, 1.0), (0.6, 1.0), (0.6, 1.0), (0.1, 1.0), (0.9, 1.0)]
    assert follow(by_hand(figures, patience=2), 5) == [0, 2, 2, 2]
    assert follow(by_hand(figures, patience=0), 5) == [0, 2, 2, 2, 5]


def test_what_a_checkpoint_holds_comes_back() -> None:
    one, other = by_hand([(0.5, 1.0), (0.75, 0.9), (0.6, 1.0)]), by_hand([])
    follow(one, 2)
    other.restore("validation", one.tensors("validation"))
    for name in ("start_diversity", "reward", "epoch", "misses"):
        assert getattr(other, name) == getattr(one, name), name
    assert (other.epoch, other.misses, other.best[0].item()) == (1, 1, 1.0)


def test_diversity_is_the_mean_distance_of_two_images_of_a_prompt() -> None:
    """Three flat images of values 0, 0.3, 0.6: pairs are 0.3, 0.6 and 0.3 apart. Three equal ones: not at all."""
    levels = torch.tensor([0.0, 0.3, 0.6, 0.2, 0.2, 0.2])
    images = levels[:, None, None, None].expand(6, 3, 4, 4)
    assert group_diversity(images, 3).tolist() == pytest.approx([0.4, 0.0])


def train(root: Path, changes: dict[str, Any], fresh: bool = True) -> dict[str, bytes]:
    set_params(root, {STAGE: SIX | changes})
    if fresh:
        shutil.rmtree(root / ".rtdmd", ignore_errors=True)
    shutil.rmtree(root / "results" / STAGE, ignore_errors=True)
    train_rtdmd.run(root)
    return results(root, STAGE)


def test_panels_change_no_training_number_shown_in_a_tracker_or_not(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They draw their own noise: student and curves are the same to the bit."""
    plain = train(root, {})
    monkeypatch.setenv(VARIABLE, "dvclive")
    panels = train(root, {"image_log_every": 3})
    assert all(panels[name] == plain[name] for name in ("generator.safetensors", "curves.csv"))
    (run_dir,) = (root / ".rtdmd/runs").iterdir()
    assert sorted(path.name for path in run_dir.glob("*.png")) == ["image-log-00000003.png", "image-log-00000006.png"]
    with zipfile.ZipFile(root / "results" / STAGE / "image_log.zip") as log:
        found = {name: log.read(name) for name in log.namelist()}
    assert found == {path.name: path.read_bytes() for path in run_dir.glob("*.png")}
    with Image.open(run_dir / "image-log-00000006.png") as panel:
        assert panel.width == 8 * (36 + PADDING) + PADDING and panel.height > 3 * 36
        with Image.open(run_dir / "dvclive/plots/images/image_log.png") as shown:
            assert shown.tobytes() == panel.tobytes()


def test_the_best_student_is_written_and_resume_is_exact(root: Path) -> None:
    whole = train(root, {"validation": SETTINGS})
    rows = rows_of(whole["curves.csv"])
    checked = [row for row in rows if "validation_reward" in row]
    assert [row["epoch"] for row in checked] == [2, 4, 6]
    assert all(row["validation_diversity"] > 0 for row in checked)
    (run_dir,) = (root / ".rtdmd/runs").iterdir()
    first = json.loads((run_dir / "journal.jsonl").read_text().splitlines()[0])
    candidates = {0: first["validation/start_reward"]} | {int(r["epoch"]): r["validation_reward"] for r in checked}
    best = max(candidates, key=candidates.__getitem__)
    _, about = load_tensors(root / "results" / STAGE / "generator.safetensors")
    assert about["epoch"] == str(best) == f"{checked[-1]['validation_best']:.0f}"
    with killed_at(RtdmdTrainer, 5):
        train(root, {"validation": SETTINGS})
    assert train(root, {"validation": SETTINGS}, fresh=False) == whole


def test_an_early_stop_stays_one_after_a_kill(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No student is good enough: after two validations the run ends with the stage-one student, killed there or not."""
    changes = {"validation": SETTINGS | {"every": 1, "min_diversity": 1e9, "patience": 2}, "save_every": 6}
    whole = train(root, changes)
    assert [row["epoch"] for row in rows_of(whole["curves.csv"])] == [1, 2]
    adapter, about = load_tensors(root / "results" / STAGE / "generator.safetensors")
    assert about["epoch"] == "0" and all(not value.any() for name, value in adapter.items() if "lora_B" in name)
    shutil.rmtree(root / "results" / STAGE)  # as a kill while the outputs are written leaves it
    monkeypatch.setattr(RtdmdTrainer, "step", None)
    assert train(root, changes, fresh=False) == whole


def test_prompts_set_aside_are_never_trained_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = RtdmdTrainer.step

    def epoch(self: Any, cond: Any, records: Any, draws: Any) -> dict[str, float]:
        seen.extend(record["prompt"] for record in records)
        return real(self, cond, records, draws)

    monkeypatch.setattr(RtdmdTrainer, "step", epoch)
    lines = (root / "results/prepare_prompts/train.jsonl").read_text().splitlines()
    every = len(lines) - 4
    changes = {
        "epochs": 2,
        "validation": SETTINGS | {"prompts": every},
        "prompts_per_epoch": 4,
        "prompt_order": "uniform",
    }
    train(root, changes)
    assert len(set(seen)) == 4  # all that is left
    with pytest.raises(
        UserError, match=rf"train_rtdmd.validation.prompts: {len(lines)}, of {len(lines)} prompts of the set train"
    ):
        train(root, {"validation": SETTINGS | {"prompts": len(lines)}})
