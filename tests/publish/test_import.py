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
from rtdmd.commands.sample import published_model
from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import load_tensors, read_json, save_tensors, sha256_tree
from rtdmd.config import Params
from rtdmd.publish import adapter
from rtdmd.publish.adapter import compose, read_adapter
from rtdmd.publish.merge import MERGED
from rtdmd.publish.records import Provenance, checked, record_of_weights, steps_of_record
from rtdmd.publish.sampler import published_sampler
from rtdmd.train.adapters import load_student
from tests.publish.exports import CHECKPOINT_RANK as RANK
from tests.publish.exports import gate_in_process, write_public_checkpoint
from tests.workspace import make_workspace

ALPHA = 8.0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_clip: Path) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("import")
    params = make_workspace(root, tiny_teacher, tiny_clip)
    write_public_checkpoint(root / "cold.pt", root, params, 1)
    write_public_checkpoint(root / "rl.pt", root, params, 2, prefix="module._orig_mod.")
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
    assert record["teacher"] == {"name": "./base", "revision": None, "sha256": sha256_tree(imported.parent / "base")}
    assert record_of_weights(imported / PUBLISHED) == {k: v for k, v in record.items() if k != "sampling"}
    (step,) = steps_of_record(checked(Provenance, record, "provenance.json"), "provenance.json")
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
        one = published_sampler(imported, params.model, torch.device("cpu"), root).velocity(x, sigma, cond)
        with pytest.raises(UserError, match=r"trained with model\.teacher: \./base, params\.yaml says data/"):
            load_student(params, load_backbone(params.model, vae=False, root=root), "train_rtdmd", tmp_path)
        own = params.model_copy(update={"model": params.model.model_copy(update={"teacher": "./base"})})
        other = load_student(own, backbone, "train_rtdmd", tmp_path)(x, sigma, cond)
    assert (one - other).abs().max() < 1e-4
    assert (one - base).abs().max() > 0.1


def test_what_was_exported_can_be_read_again(workspace: tuple[Path, Params], imported: Path) -> None:
    root, _ = workspace
    whole = compose([read_adapter(root / name, ALPHA) for name in ("cold.pt", "rl.pt")])
    again = read_adapter(imported)
    assert (again.rank, again.alpha) == (2 * RANK, 2.0 * RANK)
    assert all(torch.equal(again.tensors[key], whole.tensors[key]) for key in whole.tensors)


def test_a_checkpoint_of_another_model_leaves_no_folder(workspace: tuple[Path, Params]) -> None:
    root, _ = workspace
    tensors = {"blocks.0.lora_A.default.weight": torch.ones(2, 3), "blocks.0.lora_B.default.weight": torch.ones(4, 2)}
    torch.save(tensors, root / "other.pt")
    before = sorted(root.iterdir())
    with pytest.raises(UserError, match=r"train_acdmd: blocks\.0 is not a layer of the base model"):
        _import(root, "other.pt", "--out", "elsewhere", "--base", "base", "--alpha", "8")
    assert sorted(root.iterdir()) == before
    with pytest.raises(UserError, match=r"--out .*: exists already"):
        _import(root, "cold.pt", "--out", "base", "--base", "base", "--alpha", "8")
    with pytest.raises(UserError, match="3 files; a checkpoint of each stage at most"):
        _import(root, "cold.pt", "rl.pt", "cold.pt", "--out", "elsewhere")


def test_base_and_alpha_that_nothing_tells_are_asked_for(
    workspace: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = workspace
    with pytest.raises(UserError, match=r"cold\.pt does not record alpha; give it with --alpha"):
        _import(root, "cold.pt", "--base", "base", "--out", "elsewhere")
    with pytest.raises(UserError, match=r"cold\.pt: does not say what its base is; name its base with"):
        _import(root, "cold.pt", "--alpha", "8", "--out", "elsewhere")
    with pytest.raises(UserError) as refused:
        _import(root, "cold.pt", "--alpha", "8", "--out", "elsewhere")
    assert str(refused.value).endswith("or with --base data/world/teacher if that is it")
    with gate_in_process(monkeypatch):  # the advice as it is written
        _import(root, "cold.pt", "--alpha", "8", "--base", "data/world/teacher", "--out", "advised")
    assert read_json(root / "advised/provenance.json")["settings"]["model"]["teacher"] == "data/world/teacher"
    with pytest.raises(UserError, match=r"--base nowhere: neither model\.teacher \(data/world/teacher\) nor a folder"):
        _import(root, "cold.pt", "--alpha", "8", "--base", "nowhere", "--out", "elsewhere")
    assert not (root / "elsewhere").exists()


def test_the_alpha_and_the_base_that_are_used_are_printed_and_an_export_knows_both(
    workspace: tuple[Path, Params], imported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was imported is imported again, with nothing said: base, alpha and steps are its own. `data/world/teacher`
    may be named for its base; another one is refused."""
    root, params = workspace
    model = {"teacher": "data/other", "num_steps": 8, "eta": 0.5}
    other = params.model_copy(update={"model": params.model.model_copy(update=model)})
    monkeypatch.setattr(import_checkpoint, "load_params", lambda _: other)
    with gate_in_process(monkeypatch):
        _import(root, "imported", "--out", "again")
    assert "imported: rank 8, alpha 8, on ./base" in capsys.readouterr().err
    again = read_json(root / "again/provenance.json")
    first = read_json(imported / "provenance.json")
    assert again["settings"] == first["settings"]
    assert again["sampling"] == first["sampling"]
    shutil.copytree(root / "data/world/teacher", root / "third")
    (root / "third/scheduler/note.txt").write_text("another base")
    with pytest.raises(UserError, match=r"was made on another base than the one in \./third \(their SHA-256 differ\)"):
        _import(root, "imported", "--base", "third", "--out", "elsewhere")


@pytest.mark.parametrize("whole", [False, True])
def test_a_folder_anywhere_and_a_base_anywhere(
    whole: bool, workspace: tuple[Path, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--out` and `--base` beside the folder of the run, as a path that goes up or a whole one."""
    _, params = workspace
    root = tmp_path / "runs" / "one"
    root.mkdir(parents=True)
    for name in ("cold.pt", "params.yaml"):
        shutil.copy(workspace[0] / name, root / name)
    shutil.copytree(workspace[0] / "base", tmp_path / "runs" / "base")
    place = (root / "..").resolve() if whole else Path("..")
    words = ["cold.pt", "--alpha", "8", "--base", str(place / "base"), "--out", str(place / "out")]
    monkeypatch.chdir(root)
    with gate_in_process(monkeypatch):
        import_checkpoint.run(build_parser().parse_args(["import", *words]), Path())
    assert read_json(tmp_path / "runs/out/gate.json")["forms"].keys() == {"lora", "stacked", "merged"}
    card = (tmp_path / "runs/out/README.md").read_text()
    assert f'folder = "{"out" if whole else "../out"}"' in card
    assert published_model(Path("../out"), params.model, None, Path()).teacher == str(place / "base")


def test_the_gate_sees_an_alpha_that_the_reader_missed(
    workspace: tuple[Path, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student in memory is what PEFT makes of the file's own configuration: were rank-stabilised LoRA read as plain
    LoRA, the export would be refused."""
    root, params = workspace
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_tensors(torch.load(root / "cold.pt", weights_only=True), folder / "adapter_model.safetensors")
    names = load_backbone(params.model, vae=False, root=root).lora_targets(params.adapter.targets)
    config = {"r": RANK, "lora_alpha": 8, "use_rslora": True, "target_modules": names}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="use_rslora is set"):
        _import(root, str(folder), "--base", "base", "--out", "elsewhere")
    monkeypatch.setattr(adapter, "NOT_PLAIN", ())
    with gate_in_process(monkeypatch), pytest.raises(RtdmdError, match=r"lora, eta 0: \S+ from the student in memory"):
        _import(root, str(folder), "--base", "base", "--out", "elsewhere")
    assert not (root / "elsewhere").exists()


def test_students_are_what_training_leaves(imported: Path) -> None:
    _, first = load_tensors(imported / "students/train_acdmd/generator.safetensors")
    assert "stage_one_adapters" not in first
    tensors, about = load_tensors(imported / "students/train_rtdmd/generator.safetensors")
    assert about["stage_one_adapters"] == "merged"  # as the public code trains
    assert {key: about[key] for key in ("rank", "alpha", "stage")} == {
        "rank": "4",
        "alpha": "8",
        "stage": "train_rtdmd",
    }
    assert json.loads(about["model"])["teacher"] == "./base"
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in tensors)
