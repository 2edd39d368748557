"""Checkpoints in the public code's layout: read, composed, sampled, taken by evaluate, and exported again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rtdmd.backbones import load_backbone
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.cli import build_parser
from rtdmd.commands import import_checkpoint
from rtdmd.commands.sample import published_sampler
from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, read_json, save_tensors
from rtdmd.config import Params
from rtdmd.publish.compose import compose
from rtdmd.publish.lineage_record import record_of_weights, steps_of_record
from rtdmd.publish.merge import MERGED
from rtdmd.publish.reference import read_reference
from rtdmd.train.adapters import load_student
from tests.publish.exports import gate_in_process
from tests.workspace import make_workspace

RANK, ALPHA = 4, 8.0


def _checkpoint(path: Path, root: Path, params: Params, seed: int, prefix: str = "") -> Path:
    """generator_ema.pt as the public code saves it: a state dict with the adapter's name in its keys."""
    backbone = load_backbone(params.model, vae=False, root=root)
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name in backbone.lora_targets(params.adapter.targets):
        outer, inner = backbone.transformer.get_submodule(name).weight.shape
        tensors[f"{prefix}{name}.lora_A.default.weight"] = 0.1 * torch.randn(RANK, inner, generator=generator)
        tensors[f"{prefix}{name}.lora_B.default.weight"] = 0.1 * torch.randn(outer, RANK, generator=generator)
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_clip: Path) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("import")
    params = make_workspace(root, tiny_teacher, tiny_clip)
    _checkpoint(root / "cold.pt", root, params, 1)
    _checkpoint(root / "rl.pt", root, params, 2, prefix="module._orig_mod.")
    shutil.copytree(root / "data/world/teacher", root / "base")
    return root, params


def _import(root: Path, *words: str) -> Path:
    import_checkpoint.run(build_parser().parse_args(["import", *words]), root)
    return root / "imported"


@pytest.fixture(scope="module")
def imported(workspace: tuple[Path, Params]) -> Path:
    root, _ = workspace
    with pytest.MonkeyPatch.context() as patch, gate_in_process(patch):
        return _import(root, "cold.pt", "rl.pt", "--base", "base", "--out", "imported", "--alpha", f"{ALPHA:g}")


def test_the_folder_is_a_published_one(imported: Path) -> None:
    record = read_json(imported / "gate.json")
    assert set(record["forms"]) == {"lora", "stacked", "merged"}
    assert max(max(form["from_student"].values()) for form in record["forms"].values()) < 1e-4
    assert (imported / MERGED).is_file()
    card = (imported / "README.md").read_text()
    assert "Not evaluated here." in card
    assert 'StableDiffusion3Pipeline.from_pretrained(\n    "./base",\n' in card
    assert imported.stat().st_mode & 0o777 == 0o755


def test_provenance_names_the_checkpoints(imported: Path) -> None:
    record = read_json(imported / "provenance.json")
    assert set(record["inputs"]["import"]) == {"cold.pt", "rl.pt"}
    assert record["sampling"]["sigmas"] == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert record_of_weights(imported / PUBLISHED) == {k: v for k, v in record.items() if k != "sampling"}
    (step,) = steps_of_record(record, "provenance.json")
    assert step.params["model"]["teacher"] == "./base"


def test_it_samples_and_evaluates_as_the_two_stages(
    workspace: tuple[Path, Params], imported: Path, tmp_path: Path
) -> None:
    """`rtdmd sample --from` reads the folder, `rtdmd evaluate` its students/ in the place of results/: one model."""
    root, params = workspace
    assert (params.adapter.rank, params.adapter.alpha) == (RANK, ALPHA)
    for name in ("data", "rtdmd"):
        (tmp_path / name).symlink_to((root / name).resolve())
    shutil.copytree(imported / "students", tmp_path / "results")
    backbone = load_backbone(params.model, text=True, root=root)
    cond = backbone.encode(["a photo of a red circle"])
    x, sigma = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0)), torch.tensor([0.75])
    base = backbone.velocity(backbone.transformer, x, sigma, cond)
    with torch.no_grad():
        one = published_sampler(imported, params, torch.device("cpu"), root).velocity(x, sigma, cond)
        other = load_student(params, backbone, "train_rtdmd", tmp_path)(x, sigma, cond)
    assert (one - other).abs().max() < 1e-4
    assert (one - base).abs().max() > 0.1


def test_what_was_exported_can_be_read_again(workspace: tuple[Path, Params], imported: Path) -> None:
    root, _ = workspace
    whole = compose([read_reference(root / name, ALPHA) for name in ("cold.pt", "rl.pt")])
    again = read_reference(imported)
    assert (again.rank, again.alpha) == (2 * RANK, 2.0 * RANK)
    assert all(torch.equal(again.tensors[key], whole.tensors[key]) for key in whole.tensors)


def test_the_default_alpha_is_the_public_codes_and_a_peft_folder_tells_its_own(
    workspace: tuple[Path, Params], tmp_path: Path
) -> None:
    root, _ = workspace
    plain = read_reference(root / "cold.pt")
    assert (plain.rank, plain.alpha) == (RANK, 64.0)
    folder = tmp_path / "checkpoint-10" / "transformer"
    folder.mkdir(parents=True)
    save_tensors(torch.load(root / "cold.pt", weights_only=True), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 6, "use_rslora": False}))
    assert read_reference(tmp_path / "checkpoint-10").alpha == 6.0
    with pytest.raises(UserError, match="itself says 6; leave --alpha out"):
        read_reference(tmp_path / "checkpoint-10", 8.0)
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 6, "use_rslora": True}))
    with pytest.raises(UserError, match="use_rslora is set"):
        read_reference(tmp_path / "checkpoint-10")


class Surprise:
    """What a hostile pickle would run."""

    def __reduce__(self) -> tuple:
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a.lora_A.default.weight": Surprise()}, "not a file of plain tensors"),
        ({"a.lora_A.default.weight": 1}, "a state dict of tensors is expected"),
        ({}, "holds no tensors"),
        ({"a.weight": torch.ones(2, 2)}, r"a\.weight is no LoRA factor"),
        ({"a.lora_A.default.weight": torch.ones(2, 3)}, "a has no matching pair of LoRA factors"),
        ({"a.lora_A.x.weight": torch.ones(2, 3), "a.lora_A.y.weight": torch.ones(2, 3)}, "two tensors for a"),
        (
            {"a.lora_A.default.weight": torch.ones(2, 3), "a.lora_B.default.weight": torch.full((4, 2), torch.nan)},
            r"a\.lora_B\.default\.weight holds numbers that are not finite",
        ),
        (
            {f"{m}.lora_{f}.weight": torch.ones(r, r) for m, r in (("a", 2), ("b", 3)) for f in "AB"},
            r"ranks \[2, 3\]",
        ),
    ],
)
def test_what_is_no_adapter_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict, reason: str
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=reason):
        read_reference(tmp_path / "x.pt")
    assert "ran" not in capsys.readouterr().out


def test_a_checkpoint_of_another_model_leaves_no_folder(workspace: tuple[Path, Params]) -> None:
    root, _ = workspace
    tensors = {"blocks.0.lora_A.default.weight": torch.ones(2, 3), "blocks.0.lora_B.default.weight": torch.ones(4, 2)}
    torch.save(tensors, root / "other.pt")
    before = sorted(root.iterdir())
    with pytest.raises(UserError, match=r"train_acdmd: blocks\.0 is no layer of the base model"):
        _import(root, "other.pt", "--out", "elsewhere")
    assert sorted(root.iterdir()) == before
    with pytest.raises(UserError, match=r"--out .*: is there already"):
        _import(root, "cold.pt", "--out", "base")
    with pytest.raises(UserError, match="3 files; a checkpoint of each stage at most"):
        _import(root, "cold.pt", "rl.pt", "cold.pt", "--out", "elsewhere")


def test_students_are_what_training_leaves(imported: Path) -> None:
    tensors, about = load_tensors(imported / "students/train_rtdmd/generator.safetensors")
    assert about == {"rank": "4", "alpha": "8", "stage": "train_rtdmd"}
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in tensors)
