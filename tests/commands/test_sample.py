"""`rtdmd sample` on a tiny teacher: a grid from every kind of model, the same again for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.cli import build_parser
from rtdmd.commands import sample
from rtdmd.common.errors import UserError
from rtdmd.common.files import save_tensors
from rtdmd.common.images import PADDING
from rtdmd.config import load_params
from rtdmd.publish.compose import compose, read_adapter
from rtdmd.publish.export import write_lora
from rtdmd.publish.merge import MERGED, merged_weights, write_merged
from tests.workspace import STAGES, make_workspace

PROMPT = "a photo of a red circle"


@pytest.fixture(scope="module")
def root(tiny_teacher: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    make_workspace(folder, tiny_teacher, tiny_clip)
    return folder


def drawn(root: Path, source: str, *options: str, prompt: str = PROMPT) -> Path:
    out = root / "grids" / "grid.png"
    arguments = build_parser().parse_args(["sample", prompt, "--from", source, "--out", str(out), *options])
    sample.run(arguments, root)
    return out


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_grid_of_enlarged_images(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = drawn(root, "teacher", "--images", "5")
    side = 4 * 36 + PADDING
    assert pixels(out).shape == (2 * side + PADDING, 3 * side + PADDING, 3)
    assert capsys.readouterr().out == f"{out}\n"


def test_models_differ_and_seeds_repeat(root: Path) -> None:
    sheets = {}
    for source in ("teacher", "teacher_few_step", "train_acdmd", "results/train_rtdmd"):
        sheets[source] = drawn(root, source, "--images", "2").read_bytes()
    assert len(set(sheets.values())) == 4
    assert drawn(root, "train_rtdmd", "--images", "2").read_bytes() == sheets["results/train_rtdmd"]
    assert drawn(root, "teacher", "--images", "2", "--seed", "1").read_bytes() != sheets["teacher"]
    assert drawn(root, "teacher", "--images", "2", prompt="a photo of two squares").read_bytes() != sheets["teacher"]


def test_an_image_does_not_depend_on_how_many_are_drawn(root: Path) -> None:
    one, four = (pixels(drawn(root, "train_acdmd", "--images", n)) for n in ("1", "4"))
    inside = slice(PADDING, PADDING + 144)
    assert np.abs(one[inside, inside].astype(int) - four[inside, inside].astype(int)).max() <= 1


def test_a_published_folder_draws_what_the_student_draws(root: Path) -> None:
    adapters = [read_adapter(root / "results" / stage / "generator.safetensors") for stage in STAGES]
    (root / "export").mkdir()
    write_lora(compose(adapters), root / "export" / PUBLISHED)
    published, student, base = (pixels(drawn(root, source)) for source in ("export", "train_rtdmd", "train_acdmd"))
    assert np.abs(published.astype(int) - student.astype(int)).max() <= 1
    assert np.abs(published.astype(int) - base.astype(int)).max() > 20


def test_merged_weights_alone_draw_what_the_student_draws(root: Path) -> None:
    adapter = compose([read_adapter(root / "results" / stage / "generator.safetensors") for stage in STAGES])
    teacher = load_backbone(load_params(root / "params.yaml").model, vae=False, root=root)
    weights = merged_weights(teacher.transformer.state_dict(), adapter, torch.float32)
    write_merged(weights, root / "data/world/teacher/transformer/config.json", root / "whole", {})
    assert [path.name for path in (root / "whole").iterdir()] == ["transformer"]
    merged, student, base = (pixels(drawn(root, source)) for source in ("whole", "train_rtdmd", "train_acdmd"))
    assert np.abs(merged.astype(int) - student.astype(int)).max() <= 1
    assert np.abs(merged.astype(int) - base.astype(int)).max() > 20


def test_merged_weights_of_another_model_are_refused(root: Path) -> None:
    save_tensors({"proj.weight": torch.zeros(2, 2)}, root / "foreign" / MERGED, {"format": "pt"})
    with pytest.raises(UserError, match=r"foreign/transformer/.* tensors differ, first .* model\.teacher must be"):
        drawn(root, "foreign")


def test_what_is_no_model_is_said(root: Path) -> None:
    with pytest.raises(UserError, match=r"--from nowhere: neither one of teacher, .* nor a folder with pytorch_lora"):
        drawn(root, "nowhere")
    with pytest.raises(UserError, match="--images 0: at least 1"):
        drawn(root, "teacher", "--images", "0")
