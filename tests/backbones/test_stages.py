"""Both training stages, evaluation and sampling run on every family through the same code as the embedded world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rtdmd import cli
from rtdmd.common.files import load_tensors, read_json
from rtdmd.config import Params
from rtdmd.stages import cache_teacher, evaluate, prepare_prompts, train_acdmd, train_rtdmd
from tests.backbones.families import Loaded
from tests.workspace import make_workspace

CLIP = {"name": "clipscore", "model": "data/world/clip"}
SMALLEST: dict[str, Any] = {
    "adapter": {"rank": 2, "alpha": 4, "targets": "attention"},
    "train_acdmd": {"iterations": 2, "batch_size": 2, "save_every": 2},
    "train_rtdmd": {"epochs": 1, "rewards": [CLIP], "fake_batch_size": 2, "micro_batch": 2},
    "evaluate": {
        "suites": [{"name": "heldout", "prompts": "heldout", "images_per_tag": 1}],
        "batch_size": 6,
        "rewards": [CLIP],
        "features_model": None,
    },
    "report": {"grid_prompts": 2},
    "publish": {"prompt": "a red circle"},  # the tiny T5 spells: 40 tokens are not many
}


@pytest.fixture(scope="module")
def trained(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> tuple[Path, Params]:
    """A workspace with the family's tiny teacher in which prompts, cache and both trainings have run."""
    root, model = tmp_path_factory.mktemp("stages"), loaded.family.params(loaded.folder).model_dump(mode="json")
    model |= {"teacher": "data/world/teacher", "teacher_steps": 2}
    params = make_workspace(
        root, loaded.folder, tiny_clip, SMALLEST | {"model": model, "cache_teacher": loaded.family.text}
    )
    for stage in (prepare_prompts, cache_teacher, train_acdmd, train_rtdmd):
        stage.run(root)
    return root, params


def test_both_stages_train_the_familys_adapters(loaded: Loaded, trained: tuple[Path, Params]) -> None:
    root, params = trained
    for stage in ("train_acdmd", "train_rtdmd"):
        tensors, about = load_tensors(root / f"results/{stage}/generator.safetensors")
        assert (about["rank"], about["alpha"]) == ("2", "4")
        adapted = {name.split(".lora_")[0] for name in tensors}
        assert adapted == set(loaded.backbone.lora_targets(params.adapter.targets))
        assert any(value.abs().max() > 0 for name, value in tensors.items() if ".lora_B." in name)  # it moved


def test_teacher_and_students_are_evaluated_and_drawn(
    loaded: Loaded, trained: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = trained
    evaluate.run(root)
    metrics = read_json(root / "results/evaluate/metrics.json")["suites"]["heldout"]
    forwards = 2 * (1 if loaded.family.distilled else 2)
    assert metrics["teacher"]["network_evaluations"] == forwards
    assert metrics["train_rtdmd"]["network_evaluations"] == 4
    monkeypatch.chdir(root)
    assert cli.main(["sample", "a red circle", "--from", "train_rtdmd", "--images", "1", "--out", "one.png"]) == 0
    assert (root / "one.png").stat().st_size > 100
