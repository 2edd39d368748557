"""A run in which the student stands on a base of its own, from the text cache to the published folder and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rtdmd import cli
from rtdmd.backbones import load_backbone
from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, read_json, sha256_tree
from rtdmd.conditioning.text_cache import NULL_PROMPT, TextCache
from rtdmd.config import Params
from rtdmd.evaluate.samples import load_sampler
from rtdmd.publish.sampler import imported_model
from rtdmd.publish.trace import trace_path
from rtdmd.stages import cache_teacher, evaluate, prepare_prompts, publish, train_acdmd, train_rtdmd
from tests.publish.exports import gate_in_process
from tests.two_bases import STUDENT, make_two_bases
from tests.workspace import set_params

CPU = torch.device("cpu")
PROMPT = "a photo of a red circle"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_clip: Path) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("two-bases")
    params = make_two_bases(root, tiny_teacher, tiny_clip)
    for stage in (prepare_prompts, cache_teacher, train_acdmd, train_rtdmd, evaluate):
        stage.run(root)
    with pytest.MonkeyPatch.context() as patch, gate_in_process(patch):
        publish.run(root)
    return root, params


def test_the_stages_record_both_bases(run: tuple[Path, Params]) -> None:
    root, _ = run
    for stage in ("train_acdmd", "train_rtdmd", "evaluate", "publish"):
        record = read_json(root / f"results/{stage}/resolved.json")
        assert record["params"]["model"]["student"] == {"model": f"./{STUDENT}", "revision": None}
        assert record["inputs"][f"./{STUDENT}"] == sha256_tree(root / STUDENT)
        assert record["inputs"]["data/world/teacher"] == sha256_tree(root / "data/world/teacher")
    named = read_json(root / "inputs/student/named.json")
    assert named == {"model.student.model": {"name": f"./{STUDENT}", "revision": None}}
    link = root / "inputs/student/student/transformer/diffusion_pytorch_model.safetensors"
    assert link.samefile(root / STUDENT / "transformer/diffusion_pytorch_model.safetensors")
    assert list((root / ".rtdmd/runs").glob("train_acdmd-*/image-log-00000002.png"))


def test_what_is_published_stands_on_the_students_base_and_names_the_teacher(run: tuple[Path, Params]) -> None:
    root, params = run
    folder = root / "results/publish"
    gate = read_json(folder / "gate.json")
    assert max(max(form["from_student"].values()) for form in gate["forms"].values()) < 1e-4
    card = (folder / "README.md").read_text()
    assert f'"./{STUDENT}"' in card and '"data/world/teacher"' not in card  # the snippets load the student's base
    assert f"`./{STUDENT}` trained to sample in 4 steps" in card
    assert "It was distilled from `data/world/teacher`, with whose text encoders and VAE" in card
    assert "| Teacher | `data/world/teacher` |" in card
    assert f"| Teacher guidance | {params.model.guidance:g} |" in card
    record = read_json(folder / "provenance.json")
    assert record["student"] == {"name": f"./{STUDENT}", "revision": None, "sha256": sha256_tree(root / STUDENT)}
    assert record["teacher"]["name"] == "data/world/teacher"
    weights, _ = load_tensors(folder / "transformer/diffusion_pytorch_model.safetensors")
    base, _ = load_tensors(root / STUDENT / "transformer/diffusion_pytorch_model.safetensors")
    plain = [name for name in weights if ".attn." not in name]
    assert plain and all(torch.equal(weights[name], base[name]) for name in plain)  # attention alone carries adapters
    assert trace_path(folder).compare(root) == []


def test_the_published_folder_and_the_run_draw_the_same(
    run: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = run
    monkeypatch.chdir(root)
    for source, out in (("train_rtdmd", "one.png"), ("results/publish", "other.png")):
        assert cli.main(["sample", PROMPT, "--from", source, "--images", "1", "--out", out]) == 0
    one, other = (np.asarray(Image.open(root / name)).astype(int) for name in ("one.png", "other.png"))
    # The gate has both within 1e-4 of each other, less than one level of 8 bits: rounding moves by one at most.
    assert one.shape == other.shape and np.abs(one - other).max() <= 1


def test_the_published_folder_is_judged_on_the_base_on_which_it_stands(run: tuple[Path, Params]) -> None:
    root, params = run
    evaluate_section = params.evaluate.model_copy(update={"imported": "results/publish"})
    other_size = params.model.model_copy(update={"resolution": 2 * params.model.resolution})
    model = imported_model(params.model_copy(update={"evaluate": evaluate_section, "model": other_size}), root)
    assert (model.teacher, model.student) == (f"./{STUDENT}", None)
    assert model.resolution == other_size.resolution  # as every other model of the evaluation


def test_each_model_of_evaluate_is_drawn_by_its_own_transformer(run: tuple[Path, Params]) -> None:
    root, params = run
    encode = load_backbone(params.model, text=True, root=root).encode
    cache = TextCache(encode([NULL_PROMPT, PROMPT]), {NULL_PROMPT: 0, PROMPT: 1})
    x, sigma = torch.ones(1, 4, 9, 9), torch.tensor([0.75])

    def velocity(name: str) -> Tensor:
        sampler = load_sampler(name, params, cache, CPU, root)
        assert (sampler.steps, sampler.eta) == ((params.model.teacher_steps if name == "teacher" else 4), eta[name])
        with torch.no_grad():
            return sampler.velocity(x, sigma, cache.of([PROMPT]))

    eta = {"teacher": 0.0, "student_base": 0.0, "train_rtdmd": 0.9}
    teacher, base, student = (velocity(name) for name in eta)
    own = load_backbone(params.model.of_student(), root=root)
    with torch.no_grad():
        assert torch.equal(base, own.velocity(own.transformer, x, sigma, cache.of([PROMPT])))
    assert 0 < (student - base).abs().max() < 0.1 * (teacher - base).abs().max()  # two updates from its base
    one = params.model_copy(update={"model": params.model.model_copy(update={"student": None})})
    with pytest.raises(UserError, match=r"student_base: model\.student is null"):
        load_sampler("student_base", one, cache, CPU, root)


def test_the_students_of_the_run_are_imported_onto_their_base(
    run: tuple[Path, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out and in again: the folder stands on the student's base, and its students/ are this run's."""
    root, _ = run
    monkeypatch.chdir(root)
    with pytest.MonkeyPatch.context() as patch, gate_in_process(patch):
        assert cli.main(["import", "results/publish", "--out", "imported"]) == 0
    record = read_json(root / "imported/provenance.json")
    assert record["teacher"]["name"] == f"./{STUDENT}" and record["settings"]["model"]["student"] is None
    _, about = load_tensors(root / "imported/students/train_acdmd/generator.safetensors")
    assert json.loads(about["model"])["teacher"] == f"./{STUDENT}"
    assert cli.main(["sample", PROMPT, "--from", "imported", "--images", "1", "--out", "again.png"]) == 0
    shutil.rmtree(root / "imported")


def test_a_student_that_was_trained_on_another_base_is_refused(
    run: tuple[Path, Params], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = run
    monkeypatch.chdir(root)
    kept = (root / "params.yaml").read_text()
    set_params(root, {"adapter": {"rank": 2, "alpha": 4, "targets": "attention"}})
    try:
        assert cli.main(["sample", PROMPT, "--from", "train_acdmd", "--images", "1", "--out", "none.png"]) == 2
    finally:
        (root / "params.yaml").write_text(kept)
    said = capsys.readouterr().err
    assert f"was trained with model.student: {{model: ./{STUDENT}, revision: null}}, params.yaml says null" in said
    assert not (root / "none.png").exists()


def test_full_mode_copies_each_role_from_its_own_base(tmp_path: Path, tiny_teacher: Path, tiny_clip: Path) -> None:
    changes = {"adapter": {"mode": "full"}, "publish": {"format": "merged"}, "train_acdmd": {"image_log_every": 0}}
    params = make_two_bases(tmp_path, tiny_teacher, tiny_clip, changes)
    for stage in (prepare_prompts, cache_teacher, train_acdmd):
        stage.run(tmp_path)
    bases = load_backbone(params.model, vae=False, root=tmp_path)
    for name, own, other in (
        ("generator", bases.student, bases.transformer),
        ("fake", bases.transformer, bases.student),
    ):
        trained, _ = load_tensors(tmp_path / f"results/train_acdmd/{name}.safetensors")
        near, far = (
            max((trained[key] - value).abs().max().item() for key, value in base.state_dict().items())
            for base in (own, other)
        )
        assert 0 < near < 0.01 < far, name
