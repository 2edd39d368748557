"""`rtdmd sample` on a tiny teacher: a grid from every kind of model, the same again for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.backbones.sampling import ImageNoise
from rtdmd.backbones.sampling import sample as sampled
from rtdmd.cli import build_parser
from rtdmd.commands import sample
from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, read_json, save_tensors, sha256_file, sha256_tree, write_json
from rtdmd.common.images import PADDING
from rtdmd.config import load_params
from rtdmd.publish.adapter import compose, read_adapter, write_lora
from rtdmd.publish.merge import MERGED, merged_weights, write_merged
from rtdmd.publish.reference import stacked_student
from tests.tiny import make_tiny_teacher
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


def test_the_resolution_is_free_of_the_training(root: Path) -> None:
    """A student of 36 pixels at 24, enlarged six times; a size that the teacher cannot draw leaves no file."""
    shape = pixels(drawn(root, "train_rtdmd", "--images", "1", "--resolution", "24")).shape
    assert shape == (6 * 24 + 2 * PADDING, 6 * 24 + 2 * PADDING, 3)
    own = drawn(root, "train_rtdmd", "--images", "1").read_bytes()
    out = drawn(root, "train_rtdmd", "--images", "1", "--resolution", "36")
    assert out.read_bytes() == own
    out.unlink()
    for resolution, says in (("30", "30 is not a multiple of 12"), ("48", "48 is more than 36"), ("0", "0 is not a")):
        with pytest.raises(UserError, match=rf"^--resolution: {says}"):
            drawn(root, "train_rtdmd", "--images", "1", "--resolution", resolution)
    assert not out.exists()


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


def export(root: Path, name: str, model: dict[str, object] | None = None) -> Path:
    """A published folder of both stages' adapter; ``model``: what its record says that params.yaml does not."""
    adapter = compose([read_adapter(root / "results" / stage / "generator.safetensors") for stage in STAGES])
    section = load_params(root / "params.yaml").model.model_dump(mode="json") | (model or {})
    (root / name).mkdir()
    write_lora(adapter, root / name / PUBLISHED)
    base = root / str(section["teacher"])
    teacher = {"name": section["teacher"], "sha256": sha256_tree(base) if base.is_dir() else "0" * 64}
    write_json(root / name / "provenance.json", {"settings": {"model": section}, "teacher": teacher})
    write_json(root / name / "gate.json", {"sha256": {PUBLISHED: sha256_file(root / name / PUBLISHED)}})
    return root / name


def test_a_folder_is_sampled_as_it_records(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its base, its steps and its η, whatever params.yaml says; both are said."""
    make_tiny_teacher(root / "second", seed=5)
    own = {"teacher": "second", "num_steps": 2, "eta": 0.5}
    export(root, "recorded", own)
    params = load_params(root / "params.yaml")
    backbone = load_backbone(params.model.model_copy(update=own), text=True, root=root)
    cond = backbone.encode([PROMPT])
    velocity = stacked_student(backbone, {"x": read_adapter(root / "recorded")})
    noise = ImageNoise(0, [(0, 0)], backbone.latent_shape())
    with torch.no_grad():
        expected = backbone.decode(sampled(velocity, noise, cond, backbone.sigmas(2), 0.5))
    got = pixels(drawn(root, "recorded", "--images", "1"))
    inside = slice(PADDING, PADDING + 144)
    assert np.abs(got[inside, inside][::4, ::4] - np.round(255 * expected[0].permute(1, 2, 0).numpy())).max() <= 1
    said = capsys.readouterr().err
    assert f"{root}/recorded: as it records: on second, 36 pixels, 2 steps, η 0.5\n" in said
    assert f"{PUBLISHED}: rank 8, alpha 8\n" in said


def test_a_base_that_is_not_the_recorded_one_is_refused(root: Path) -> None:
    folder = export(root, "moved", {"teacher": "gone"})
    with pytest.raises(UserError, match=r"was made on gone, which is not here; name a copy of it with --base FOLDER"):
        drawn(root, "moved")
    with pytest.raises(UserError, match=r"another base than the one in \./data/world/teacher \(their SHA-256 differ\)"):
        drawn(root, "moved", "--base", "data/world/teacher")
    record = read_json(folder / "provenance.json")
    record["teacher"]["sha256"] = sha256_tree(root / "data/world/teacher")
    write_json(folder / "provenance.json", record)
    shown = pixels(drawn(root, "moved", "--base", "data/world/teacher"))
    assert np.abs(shown.astype(int) - pixels(drawn(root, "train_rtdmd")).astype(int)).max() <= 1
    with pytest.raises(UserError, match=r"--base x: only for a published folder; --from teacher is none"):
        drawn(root, "teacher", "--base", "x")


def test_a_record_of_something_else_is_one_line(root: Path) -> None:
    folder = export(root, "odd")
    write_json(folder / "provenance.json", {"settings": ["x"]})
    with pytest.raises(UserError, match=r"odd/provenance\.json: not a record of this package: it has no settings"):
        drawn(root, "odd")
    write_json(folder / "provenance.json", {"settings": {"model": {"family": "sd4"}}})
    with pytest.raises(UserError, match=r"odd/provenance\.json: settings\.model: .* \(\d+ more"):
        drawn(root, "odd")


def test_weights_that_did_not_pass_the_gate_are_refused(root: Path) -> None:
    """A flipped bit of a safetensors file shows nowhere else."""
    path = export(root, "damaged") / PUBLISHED
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"damaged/{PUBLISHED} is not what passed the gate \(gate\.json\); make or"):
        drawn(root, "damaged")


def test_an_adapter_with_half_its_tensors_is_refused(root: Path) -> None:
    (root / "halved").mkdir()
    adapter = compose([read_adapter(root / "results" / stage / "generator.safetensors") for stage in STAGES])
    write_lora(adapter, root / "halved" / PUBLISHED)
    tensors, header = load_tensors(root / "halved" / PUBLISHED)
    kept = {key: value for key, value in tensors.items() if "transformer_blocks.0." in key}
    save_tensors(kept, root / "halved" / PUBLISHED, header)
    with pytest.raises(UserError, match=r"published: no tensors for \d+ layers that its target_modules name, first "):
        drawn(root, "halved")


def test_a_student_in_other_steps_than_its_own_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(root / "params.yaml")
    other = params.model_copy(update={"model": params.model.model_copy(update={"num_steps": 8})})
    monkeypatch.setattr(sample, "load_params", lambda _: other)
    with pytest.raises(UserError, match=r"was trained with model\.num_steps: 4, params\.yaml says 8; set"):
        drawn(root, "train_rtdmd")


def test_what_is_no_model_is_said(root: Path) -> None:
    with pytest.raises(UserError, match=r"--from nowhere: neither one of teacher, .* nor a folder with pytorch_lora"):
        drawn(root, "nowhere")
    with pytest.raises(UserError, match="--images 0: at least 1"):
        drawn(root, "teacher", "--images", "0")
