"""The gate: what it lets pass, and every way of publishing something broken that it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from PIL import Image

from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import load_tensors, read_json, save_tensors
from rtdmd.publish import export, gate, gate_check
from rtdmd.publish.merge import MERGED
from rtdmd.stages import publish
from tests.alive import transformers_alive
from tests.backbones.families import FAMILIES
from tests.publish.exports import (
    LORA_LINES,
    MERGED_LINES,
    gate_in_process,
    publish_workspace,
    without_lines,
    without_lora_writer,
    write_full_student,
)
from tests.workspace import set_params


@pytest.fixture
def root(tmp_path: Path, tiny_teacher: Path, tiny_clip: Path) -> Path:
    publish_workspace(tmp_path, tiny_teacher, tiny_clip)
    return tmp_path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The gate's program in this process; see `gate_in_process`."""
    with gate_in_process(monkeypatch):
        yield


def test_adapter_merged_and_stacked_pass_in_a_fresh_process(root: Path) -> None:
    publish.run(root)
    record = read_json(root / "results/publish/gate.json")
    assert set(record["forms"]) == {"lora", "merged", "stacked"}
    for form in record["forms"].values():
        assert form["keys"][0] == form["keys"][1] > 0
        assert set(form["from_student"]) == {"0", "0.9", "1"}
        assert max(form["from_student"].values()) < 1e-4
        assert min(form["from_base"].values()) > 0.1
    assert record["forms"]["stacked"]["keys"][1] == 2 * record["forms"]["lora"]["keys"][1]
    assert (record["snippets"], record["warnings"]) == (3, 0)
    files = {path.relative_to(root / "results/publish").as_posix() for path in (root / "results/publish").rglob("*.*")}
    assert set(record["sha256"]) == files - {"gate.json", "resolved.json"}


def test_adapters_of_a_family_without_adapter_files_are_published_merged(
    root: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the refusal of such a family advises: no adapter file is written, for the gate's own comparison neither."""
    without_lora_writer(monkeypatch)
    set_params(root, {"publish": {"format": "merged"}})
    without_lines(root, LORA_LINES)
    publish.run(root)
    forms = read_json(root / "results/publish/gate.json")["forms"]
    assert list(forms) == ["merged"] and max(forms["merged"]["from_student"].values()) < 1e-4


def test_a_student_of_all_weights_in_bfloat16_is_published_merged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh process too: the cast is part of the file, so the file is compared with the cast weights. The
    student's weights take the place of the base's, so that one transformer is held."""
    changes = {"adapter": {"mode": "full"}, "model": {"dtype": "bfloat16"}, "publish": {"format": "merged"}}
    params = set_params(root, changes)
    write_full_student(root, params)
    without_lines(root, LORA_LINES)
    with transformers_alive(monkeypatch, SD3Transformer2DModel) as alive:
        publish.run(root)
    assert alive == [0] * (1 + 3 * 2)
    record = read_json(root / "results/publish/gate.json")
    assert list(record["forms"]) == ["merged"]
    assert max(record["forms"]["merged"]["from_student"].values()) < 1e-4
    weights, _ = load_tensors(root / "results/publish" / MERGED)
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    student, _ = load_tensors(root / "results/train_rtdmd/generator.safetensors")
    assert all(torch.equal(weights[name], student[name].bfloat16()) for name in student)
    assert not (root / "results/publish" / PUBLISHED).exists()


def test_an_adapter_on_a_half_precision_base_is_merged_in_float32_and_cast_once(
    root: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no two transformers are held at once, of those that are made: one without weights beside the text encoders;
    the student's, in float32 again, and the merged file's, each described first without weights; and in the gate those
    of the card's two programs, the base's and the file's."""
    set_params(root, {"model": {"dtype": "bfloat16"}})
    with transformers_alive(monkeypatch, SD3Transformer2DModel) as alive:
        publish.run(root)
    assert alive == [0] * (1 + 3 * 2 + 4)
    forms = read_json(root / "results/publish/gate.json")["forms"]
    assert set(forms) == {"lora", "merged", "stacked"}
    assert max(max(form["from_student"].values()) for form in forms.values()) < 1e-4
    assert {value.dtype for value in load_tensors(root / "results/publish" / MERGED)[0].values()} == {torch.bfloat16}
    assert {value.dtype for value in load_tensors(root / "results/publish" / PUBLISHED)[0].values()} == {torch.float32}
    assert "dtype=torch.bfloat16" in (root / "results/publish/README.md").read_text()


def test_merged_weights_are_held_against_the_base_and_the_adapters(
    root: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below float32 the file is compared with its own cast in memory; that these are the student's is told by what PEFT
    adds to the base, here with an adapter merged at twice its strength."""
    set_params(root, {"model": {"dtype": "bfloat16"}})
    real = export.merged_weights

    def twice(state, adapter, dtype):
        return real(state, replace(adapter, alpha=2 * adapter.alpha), dtype)

    monkeypatch.setattr(export, "merged_weights", twice)
    with pytest.raises(RtdmdError, match=r"\.weight is not the base's with what the adapters add \(\S+ more than one"):
        publish.run(root)
    assert not list((root / "results/publish").iterdir())


def test_an_imported_student_is_not_published_as_one_of_this_run(root: Path) -> None:
    path = root / "results/train_rtdmd/generator.safetensors"
    tensors, header = load_tensors(path)
    save_tensors(tensors, path, header | {"imported": "true"})
    with pytest.raises(UserError, match=r"was imported, not trained here, .* `rtdmd train_rtdmd` trains a student"):
        publish.run(root)


@pytest.mark.parametrize("name", ["flux1", "flux2"])
def test_packed_latents_and_dynamic_shifts_pass_too(name: str, tmp_path: Path, tiny_clip: Path, here: None) -> None:
    family = FAMILIES[name]
    family.write(tmp_path / "teacher")
    model = family.params(tmp_path / "teacher").model_dump(mode="json") | {"teacher": "data/world/teacher"}
    (tmp_path / "root").mkdir()
    publish_workspace(
        tmp_path / "root", tmp_path / "teacher", tiny_clip, {"model": model, "publish": {"prompt": "a cat"}}
    )
    publish.run(tmp_path / "root")
    folder = tmp_path / "root" / "results/publish"
    for form in read_json(folder / "gate.json")["forms"].values():
        assert form["keys"][0] == form["keys"][1] > 0
        assert max(form["from_student"][eta] / scale for eta, scale in form["scale"].items()) < 4e-6  # of float32
    scheduler = read_json(folder / "scheduler/scheduler_config.json")
    assert scheduler["stochastic_sampling"] is True
    assert scheduler["use_dynamic_shifting"] is True


def _spoilt(monkeypatch: pytest.MonkeyPatch, spoil) -> None:
    """Let ``spoil`` change the folder after everything was written and before the gate sees it."""
    real = export.run_gate

    def run_gate(source, exported, folder, called):
        spoil(folder)
        return real(source, exported, folder, called)

    monkeypatch.setattr(export, "run_gate", run_gate)


def _header(folder: Path, **changes: float) -> None:
    tensors, header = load_tensors(folder / PUBLISHED)
    told = json.loads(header["lora_adapter_metadata"]) | {f"transformer.{k}": v for k, v in changes.items()}
    save_tensors(tensors, folder / PUBLISHED, header | {"lora_adapter_metadata": json.dumps(told)})


def _wrong_scale(folder: Path) -> None:
    _header(folder, lora_alpha=16)


def _unmerged(folder: Path) -> None:
    """What a merge that finds no key writes: the base model (the public code's script does)."""
    base, _ = load_tensors(folder.parents[2] / "data/world/teacher/transformer/diffusion_pytorch_model.safetensors")
    save_tensors(base, folder / MERGED, {"format": "pt"})


def _lost_tensor(folder: Path) -> None:
    tensors, header = load_tensors(folder / MERGED)
    save_tensors({name: tensors[name] for name in list(tensors)[1:]}, folder / MERGED, header)


def _stray_key(folder: Path) -> None:
    tensors, header = load_tensors(folder / PUBLISHED)
    stray = {
        "transformer.nowhere.lora_A.weight": torch.ones(8, 4),
        "transformer.nowhere.lora_B.weight": torch.ones(4, 8),
    }
    save_tensors(tensors | stray, folder / PUBLISHED, header)


def _base_schedule(folder: Path) -> None:
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(read_json(path) | {"shift": 3.0, "shift_terminal": None}))


def _noisy_card(folder: Path) -> None:
    """load_lora_weights, the usual call, warns that the text encoders get nothing."""
    card = (folder / "README.md").read_text()
    quiet = f'pipe.transformer.load_lora_adapter(folder, weight_name="{PUBLISHED}")'
    assert quiet in card
    (folder / "README.md").write_text(card.replace(quiet, "pipe.load_lora_weights(folder)"))


def _no_picture(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("image.save(", "print("))


@pytest.mark.parametrize(
    ("spoils", "reasons"),
    [
        (
            (_wrong_scale, _unmerged, _no_picture),
            (
                r"lora, eta 0: \S+ from the student in memory, allowed \S+",
                r"merged, eta 0: \S+ from the student and 0\.0e\+00 from the base model",
                r"the card's snippet saved no picture",
            ),
        ),
        ((_lost_tensor,), (r"its process ended with:",)),
        (
            (_stray_key, _noisy_card),
            (
                r"lora: \d+ of \d+ tensors were consumed",
                r"a warning while loading: diffusers\S* No LoRA keys associated to CLIPTextModelWithProjection",
            ),
        ),
        ((_base_schedule,), (r"lora, eta 0: \S+ from the student in memory", r"merged, eta 1: ")),
    ],
)
def test_what_is_broken_is_refused_and_leaves_nothing(
    root: Path, here: None, monkeypatch: pytest.MonkeyPatch, spoils: tuple, reasons: tuple[str, ...]
) -> None:
    _spoilt(monkeypatch, lambda folder: [spoil(folder) for spoil in spoils])
    with pytest.raises(RtdmdError, match="nothing was published") as refused:
        publish.run(root)
    for reason in reasons:
        assert re.search(reason, str(refused.value)), reason
    assert not list((root / "results/publish").iterdir())


def test_a_card_that_does_not_run_is_refused_with_its_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "one\nNameError: name 'pip' is not defined")

    monkeypatch.setattr(gate.subprocess, "run", run)
    with pytest.raises(RtdmdError, match=r"its process ended with:\none\nNameError: name 'pip'"):
        publish.run(root)


def test_a_wrong_scale_of_an_adapter_that_changes_little_is_seen() -> None:
    """Both differences lie below 1e-4; that the base is only twice as far tells."""
    found = {"keys": [4, 4], "from_student": {"0": 4e-5}, "from_base": {"0": 8e-5}, "scale": {"0": 0.9}}
    answer = {"forms": {"lora": found}, "warnings": [], "ours": [], "problems": []}
    assert gate._judge(answer) == ["lora, eta 0: 4.0e-05 from the student and 8.0e-05 from the base model"]
    found["from_student"] = {"0": float("nan")}
    assert len(gate._judge(answer)) == 2
    found["from_student"] = {"0": 1e-7}
    assert gate._judge(answer) == []
    answer["forms"]["lora"] = {
        "keys": [4, 4],
        "from_student": {"0": 1.5e-4},
        "from_base": {"0": 8.0},
        "scale": {"0": 2.0},
    }
    assert gate._judge(answer) == []
    answer["forms"]["lora"]["scale"] = {"0": 1.0}
    (refusal,) = gate._judge(answer)
    assert refusal == "lora, eta 0: 1.5e-04 from the student in memory, allowed 1.0e-04"


def test_format_and_dvc_yaml_agree_and_full_has_no_adapter(root: Path) -> None:
    without_lines(root, MERGED_LINES)
    missing = r"publish\.format: both: add it to the outs of publish in dvc\.yaml: results/publish/transformer/"
    with pytest.raises(UserError, match=missing):
        publish.run(root)
    with pytest.raises(UserError, match=r"publish\.format: lora with adapter\.mode: full, .* allowed for it: merged"):
        export.check_forms("lora", "full")


def test_only_released_packages_count() -> None:
    versions = {"diffusers": "0.39.0.dev0", "peft": "0.18.0rc1", "torch": "2.13.0+cpu", "transformers": "5.0.0.post1"}
    assert [text.split(" is no release")[0] for text in gate.unreleased(versions)] == [
        "diffusers 0.39.0.dev0",
        "peft 0.18.0rc1",
    ]


def test_a_one_coloured_picture_is_no_sample(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "sample.png")
    assert gate_check.pictures(tmp_path) == ["sample.png, drawn by the card's snippet, is of one colour"]
    Image.linear_gradient("L").save(tmp_path / "sample.png")
    assert gate_check.pictures(tmp_path) == []


def test_the_card_may_name_a_path_that_goes_up(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    names = ["../../base", "../export", "./here"]
    work = gate._working_folder(tmp_path / "gate", names)
    for name in names:
        gate._link(work, name, tmp_path / "export")
        assert (work / name).resolve() == tmp_path / "export"
        assert (tmp_path / "gate") in Path(os.path.normpath(work / name)).parents
