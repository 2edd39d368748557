"""A student's base of its own: whose transformer each role runs on, what is held once, and what does not fit."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rtdmd.backbones import PipelineBackbone, load_backbone
from rtdmd.common.errors import UserError
from rtdmd.config import ModelParams, Params, preset
from rtdmd.pipeline.model_inputs import check_local
from rtdmd.train.adapters import ADAPTERS, AdapterBank, transformer_blocks
from tests.tiny import edit_json
from tests.train.workshop import adapter, conditioning, disturb, normal
from tests.two_bases import make_student_base

X, SIGMA = normal((2, 4, 9, 9), "two bases"), torch.tensor([0.4, 0.9])


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    return make_student_base(tmp_path_factory.mktemp("student") / "base", tiny_teacher)


def params_on(teacher: Path, student: Path | None) -> Params:
    own = None if student is None else {"model": str(student), "revision": None}
    return preset("smoke", {"model": {"teacher": str(teacher), "student": own}})


def velocity(backbone: PipelineBackbone, transformer: nn.Module) -> Tensor:
    return backbone.velocity(transformer, X, SIGMA, conditioning(2))


def places(module: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_transformer_is_its_own_bases_and_there_is_no_third(tiny_teacher: Path, student: Path, dtype: str) -> None:
    def model(teacher: Path, of: Path | None) -> ModelParams:
        return params_on(teacher, of).model.model_copy(update={"dtype": dtype})

    both = load_backbone(model(tiny_teacher, student))
    theirs, ours = (load_backbone(model(base, None)) for base in (tiny_teacher, student))
    assert torch.equal(velocity(both, both.transformer), velocity(theirs, theirs.transformer))
    assert torch.equal(velocity(both, both.student), velocity(ours, ours.transformer))
    assert not torch.allclose(velocity(both, both.student), velocity(both, both.transformer), atol=1e-2)
    assert ours.student is ours.transformer and both.dtype == ours.dtype
    kept = {type(part) for part in both.pipeline.components.values() if isinstance(part, nn.Module)}
    assert kept == {type(theirs.transformer), type(theirs.pipeline.vae)}  # one pipeline: the teacher's
    assert not places(both.transformer) & places(both.student)
    assert len(places(both.transformer)) == len(places(both.student)) == len(places(theirs.transformer))
    assert not any(p.requires_grad for p in both.student.parameters()) and not both.student.training


def test_one_of_the_two_can_be_left_out(tiny_teacher: Path, student: Path) -> None:
    model = params_on(tiny_teacher, student).model
    both = load_backbone(model)
    alone = load_backbone(model, bases="student")
    assert alone.transformer is alone.student is alone.pipeline.transformer
    assert (alone.dtype, alone.device) == (both.dtype, both.device)
    assert torch.equal(velocity(alone, alone.transformer), velocity(both, both.student))
    assert torch.equal(alone.decode(X), both.decode(X)) and torch.equal(alone.sigmas(4), both.sigmas(4))
    teacher = load_backbone(model, bases="teacher")
    assert torch.equal(velocity(teacher, teacher.transformer), velocity(both, both.transformer))
    assert {p.device.type for p in teacher.student.parameters()} == {"meta"}  # what stands on it cannot run


def test_null_is_one_base(tiny_teacher: Path) -> None:
    model = params_on(tiny_teacher, None).model
    assert model.of_student() is model
    for bases in ("both", "teacher", "student"):
        backbone = load_backbone(model, bases=bases)
        assert backbone.student is backbone.transformer and backbone.pipeline.transformer is backbone.transformer


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_roles_stand_on_their_bases(tiny_teacher: Path, student: Path, mode: str) -> None:
    """A fresh adapter adds nothing: generator and reference are the student's base, fake score and teacher the
    teacher's. Each adapter lies on its own base alone."""
    backbone = load_backbone(params_on(tiny_teacher, student).model, vae=False)
    theirs, ours = velocity(backbone, backbone.transformer), velocity(backbone, backbone.student)
    before = [sum(p.numel() for p in base.parameters()) for base in (backbone.transformer, backbone.student)]
    bank = AdapterBank(backbone, adapter(mode), ADAPTERS["train_rtdmd"], 0)

    def run(role: str) -> Tensor:
        return bank.velocity(role, X, SIGMA, conditioning(2))

    for role, expected in (("teacher", theirs), ("fake", theirs), ("generator", ours), ("reference", ours)):
        assert torch.equal(run(role), expected), role
    on_teacher, on_student = (
        {name for name in ("acdmd", "rtdmd", "fake") if any(f".{name}." in key for key, _ in base.named_parameters())}
        for base in (backbone.transformer, backbone.student)
    )
    if mode == "lora":
        assert (on_teacher, on_student) == ({"fake"}, {"acdmd", "rtdmd"})
        one = sum(value.numel() for value in bank.state("fake").values())
        after = [sum(p.numel() for p in base.parameters()) for base in (backbone.transformer, backbone.student)]
        assert after == [before[0] + one, before[1] + 2 * one]
        assert len(bank.layers("fake")) == len(bank.layers("rtdmd")) > 0
        assert not {id(layer) for layer in bank.layers("fake")} & {id(layer) for layer in bank.layers("rtdmd")}
    else:
        assert "beside the teacher's and the student's" in bank.cost()
    disturb(bank, "acdmd", "rtdmd", "fake")
    assert torch.equal(run("teacher"), theirs)
    assert all(not torch.equal(run(role), ours) for role in ("generator", "reference"))
    assert not torch.equal(run("fake"), theirs)


def test_an_adapter_is_scaled_on_its_own_base(tiny_teacher: Path, student: Path) -> None:
    backbone = load_backbone(params_on(tiny_teacher, student).model, vae=False)
    theirs = velocity(backbone, backbone.transformer)
    bank = AdapterBank(backbone, adapter(), ADAPTERS["train_acdmd"], 0)
    disturb(bank, "acdmd", "fake")

    def run(role: str) -> Tensor:
        return bank.velocity(role, X, SIGMA, conditioning(2))

    generator, fake = run("generator"), run("fake")
    with bank.scaled("fake", 0.0):
        assert torch.equal(run("generator"), generator) and torch.equal(run("fake"), theirs)
    assert torch.equal(run("fake"), fake) and not torch.equal(fake, theirs)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_blocks_computed_again_run_on_their_own_base(tiny_teacher: Path, student: Path, mode: str) -> None:
    def gradients(again: bool) -> list[Tensor]:
        backbone = load_backbone(params_on(tiny_teacher, student).model, vae=False)
        bank = AdapterBank(backbone, adapter(mode, again=again), ADAPTERS["train_rtdmd"], 0)
        disturb(bank, "acdmd", "rtdmd", "fake", scale=0.02)
        own, fake = bank.trainable("rtdmd"), bank.trainable("fake")
        v, v_fake = (bank.velocity(role, X, SIGMA, conditioning(2)) for role in ("generator", "fake"))
        bank.velocity("reference", X, SIGMA, conditioning(2))
        loss = (v * v_fake).mean()
        return [*torch.autograd.grad(loss, own, retain_graph=True), *torch.autograd.grad(loss, fake)]

    plain, again = gradients(False), gradients(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert sum(g.abs().sum() for g in plain) > 0


def change(name: str, **entries: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / name, **entries)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def other_setting(part: str, key: str, value: object, teachers: object) -> tuple[Callable[[Path], None], str]:
    """A setting of a part, and what is said where the teacher's is another."""
    says = f"its {part} has {key}: {value} in its config.json, the teacher's {teachers};"
    return change(f"{part}/config.json", **{key: value}), re.escape(says)


MISFITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "deeper": (
        change("transformer/config.json", num_layers=3),
        r"its transformer has another shape than the teacher's \(\d+ tensors differ, first transformer_blocks\.",
    ),
    "another setting of the same shapes": other_setting("transformer", "sample_size", 8, 9),
    "other levels": (
        change("scheduler/scheduler_config.json", shift=1.0),
        r"its scheduler sets the 4 steps to 1, 0\.75, 0\.5, 0\.25, 0, the teacher's to 1, 0\.9, 0\.75, 0\.5, 0;",
    ),
    "other latents": other_setting("vae", "scaling_factor", 2.0, 1.3),
    "another pipeline": (
        change("model_index.json", _class_name="FluxPipeline"),
        r"model\.family: sd3 needs a StableDiffusion3Pipeline, but .* is a FluxPipeline",
    ),
    "no index": (remove("model_index.json"), r".* has no model_index\.json, so it is not a diffusers pipeline folder"),
    "no config": (remove("transformer/config.json"), r".*transformer/config\.json"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_base_that_does_not_fit_is_one_line(tiny_teacher: Path, student: Path, tmp_path: Path, case: str) -> None:
    """Told by `rtdmd params check`, by every stage before it starts, and before any weight is read."""
    spoil, says = MISFITS[case]
    folder = tmp_path / "base"
    shutil.copytree(student, folder)
    spoil(folder)
    (folder / "transformer/diffusion_pytorch_model.safetensors").write_bytes(b"not read")
    with pytest.raises(UserError, match=rf"^model\.student\.model: {says}") as refused:
        load_backbone(params_on(tiny_teacher, folder).model)
    assert "\n" not in str(refused.value)


def test_what_params_check_says(tiny_teacher: Path, student: Path, tmp_path: Path) -> None:
    check_local(tmp_path, params_on_root(tmp_path, tiny_teacher, student))
    with pytest.raises(UserError, match=r"^model\.student\.model: there is no folder .*nowhere; correct the path, or"):
        check_local(tmp_path, params_on_root(tmp_path, tiny_teacher, tmp_path / "nowhere"))
    shutil.copytree(student, tmp_path / "base")
    change("scheduler/scheduler_config.json", shift=1.0)(tmp_path / "base")
    with pytest.raises(UserError, match=r"^model\.student\.model: its scheduler sets the 4 steps to 1, 0\.75"):
        check_local(tmp_path, params_on_root(tmp_path, tiny_teacher, tmp_path / "base"))


def params_on_root(root: Path, teacher: Path, student: Path) -> Params:
    """Two bases, and the repository's world for the rewards."""
    if not (root / "data").exists():
        (root / "data").symlink_to(Path("data").absolute())
    return params_on(teacher, student)


@pytest.mark.parametrize(
    ("student", "says"),
    [
        ("a/b", r"model\.student: 'a/b' is not allowed; allowed: null, or \{model: owner/name or a folder, revision:"),
        ({"model": "a/b", "revision": None}, r"model\.student\.revision: None with the Hub id 'a/b'; allowed: the 40"),
        (
            {"model": "./b", "revision": "1" * 40},
            r"model\.student\.revision: '1+' with the folder './b'; allowed: null",
        ),
        ({"model": "a--b/c", "revision": "1" * 40}, r"model\.student\.model: 'a--b/c'; allowed: owner/name, "),
        ({"model": "./b"}, r"model\.student\.revision is missing"),
        ({"model": "data/world/teacher", "revision": None}, r"model\.student: .* is the teacher, .*; allowed: null"),
    ],
)
def test_a_section_that_names_no_base_is_one_line(student: Any, says: str) -> None:
    with pytest.raises(UserError, match=rf"^preset smoke: {says}"):
        preset("smoke", {"model": {"student": student}})


def test_of_student_is_a_section_of_its_own() -> None:
    model = preset("flux2-klein-4b").model
    own = model.of_student()
    assert (own.teacher, own.student, own.guidance) == ("black-forest-labs/FLUX.2-klein-4B", None, 1.0)
    assert (own.key, own.pin) == ("model.student.model", "model.student.revision")
    assert (model.key, model.pin) == ("model.teacher", "model.revision")
    assert own.of_student() is own and own.resolution == model.resolution
    assert ModelParams.model_validate(own.model_dump(mode="json")).teacher == own.teacher


def test_blocks_of_both_bases_are_found(tiny_teacher: Path, student: Path) -> None:
    backbone = load_backbone(params_on(tiny_teacher, student).model, vae=False)
    bank = AdapterBank(backbone, adapter(), ADAPTERS["train_acdmd"], 0)
    assert bank.transformers == [backbone.transformer, backbone.student]
    assert [len(transformer_blocks(base)) for base in bank.transformers] == [2, 2]
