"""The published checkpoints: where their files come from, and the base on which they land."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from rtdmd import cli
from rtdmd.commands import import_checkpoint
from rtdmd.common.errors import UserError
from rtdmd.common.pins import UNPINNED
from rtdmd.config import ModelParams
from rtdmd.experiments import RUNS
from rtdmd.experiments.checkpoints import wanted
from rtdmd.experiments.settings import LOCAL, load_local
from tests.publish.test_known_bases import checkpoint, layout_of_preset

BASES = {
    "sd35m-checkpoint": "stabilityai/stable-diffusion-3.5-medium",
    "flux1-dev-checkpoint": "black-forest-labs/FLUX.1-dev",
    "flux2-klein-4b-checkpoint": "black-forest-labs/FLUX.2-klein-4B",
    "flux2-klein-9b-checkpoint": "black-forest-labs/FLUX.2-klein-9B",
}
REPOSITORIES = {
    "sd35m-checkpoint": "Harahan/SD35M-RTDMD",
    "flux1-dev-checkpoint": "Harahan/FLUX1-12B-RTDMD",
    "flux2-klein-4b-checkpoint": "Harahan/FLUX2-4B-RTDMD",
    "flux2-klein-9b-checkpoint": "Harahan/FLUX2-9B-RTDMD",
}
COMMIT = "a" * 40
FILES = ("cold_start/generator_ema.pt", "rtdmd/generator_ema.pt")


def write_local(root: Path, **changes: Any) -> None:
    """workflow/experiments.yaml with these sections filled in."""
    sections = {key: {} for key in ("params", "presets", "scorers", "sources", "suites", "checkpoints")} | changes
    (root / LOCAL).parent.mkdir(exist_ok=True)
    (root / LOCAL).write_text(yaml.safe_dump(sections))


def write_files(folder: Path) -> None:
    """Something in the place of each file of a checkpoint."""
    for file in FILES:
        (folder / file).parent.mkdir(parents=True)
        (folder / file).touch()


def imported_model(name: str, root: Path, layout: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> ModelParams:
    """Section model with which `rtdmd import --experiment` goes on, for files with these layers."""
    read: list[float | None] = []

    def reader(_: Path, alpha: float | None) -> object:
        read.append(alpha)
        return checkpoint(layout)

    monkeypatch.setattr(import_checkpoint, "read_adapter", reader)
    monkeypatch.setattr(import_checkpoint, "recorded", lambda _: None)
    asked = import_checkpoint._asked(cli.build_parser().parse_args(["import", "--experiment", name]), root)
    assert read == [64.0, 64.0] and asked.form == "lora" and asked.out == Path(f"models/{name}")
    return import_checkpoint._model(asked.params.model, asked, root)


def test_the_published_checkpoints_are_runs() -> None:
    found = {name: run.checkpoint for name, run in RUNS.items() if run.checkpoint is not None}
    assert {name: checkpoint.repository for name, checkpoint in found.items()} == REPOSITORIES
    assert {checkpoint.files for checkpoint in found.values()} == {FILES}


@pytest.mark.parametrize("name", BASES)
def test_a_checkpoint_lands_on_the_base_that_it_was_trained_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """klein's students stand on the distilled model, SD3.5-M is told from SD3-M, which has the same layers."""
    write_files(tmp_path / "files")
    write_local(tmp_path, checkpoints={name: {"path": "files"}})
    model = imported_model(name, tmp_path, layout_of_preset(RUNS[name].preset), monkeypatch)
    assert (model.teacher, model.student, model.num_steps, model.eta) == (BASES[name], None, 4, 0.9)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        (
            "flux2-klein-4b-checkpoint",
            {"flux2-klein-4b": {"model": {"student": None}}},
            r"its base is black-forest-labs/FLUX\.2-klein-4B, but model\.teacher is .*FLUX\.2-klein-base-4B; set model",
        ),
        (
            "sd35m-checkpoint",
            {"sd35m": {"model": {"teacher": "black-forest-labs/FLUX.1-dev"}}},
            r"diffusers or stabilityai/stable-diffusion-3\.5-medium, but model\.teacher is .*FLUX\.1-dev; set model",
        ),
    ],
)
def test_a_checkpoint_is_not_put_on_another_base(
    name: str, changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "files")
    write_local(tmp_path, checkpoints={name: {"path": "files"}}, presets=changes)
    with pytest.raises(UserError, match=says):
        imported_model(name, tmp_path, layout_of_preset(RUNS[name].preset), monkeypatch)


def test_a_checkpoint_is_downloaded_at_its_pinned_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, asked = "flux2-klein-9b-checkpoint", []
    write_local(tmp_path)
    with pytest.raises(UserError, match=rf"checkpoints: {name}: revision: still the placeholder; write the commit of"):
        wanted(name, tmp_path)
    assert load_local(tmp_path).checkpoint(RUNS[name]).revision == UNPINNED
    write_local(tmp_path, checkpoints={name: {"revision": COMMIT, "folder": "/shared/imported"}})

    def download(repository: str, revision: str, allow_patterns: list[str]) -> str:
        asked.append((repository, revision, allow_patterns))
        return str(tmp_path / "hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match=rf"revision: {REPOSITORIES[name]} has no file {FILES[0]} at {COMMIT}; name"):
        wanted(name, tmp_path)
    write_files(tmp_path / "hub")
    found = wanted(name, tmp_path)
    assert asked[-1] == (REPOSITORIES[name], COMMIT, list(FILES))
    assert found.files == {f"{REPOSITORIES[name]}@{COMMIT}/{file}": tmp_path / "hub" / file for file in FILES}
    assert found.out == Path("/shared/imported") == Path(str(found.params.evaluate.imported))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "workflow"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--experiment", "sd35m"], "experiment sd35m has no published checkpoint; allowed: sd35m-checkpoint, "),
        (["--experiment", "sd35m-chekpoint"], "did you mean sd35m-checkpoint?"),
        (["a.pt", "--experiment", "sd35m-checkpoint"], "import: --experiment RUN stands alone; `checkpoints` in "),
        ([], "import: name checkpoints and --out DIR, or --experiment RUN"),
        (["a.pt"], "import: name checkpoints and --out DIR, or --experiment RUN"),
        (["a.pt", "a.pt", "--out", "b"], "a.pt is named twice; name each checkpoint once"),
        (
            ["--experiment", "sd35m-checkpoint"],
            "path: there is no file nowhere/cold_start/generator_ema.pt; ",
        ),
    ],
)
def test_what_cannot_be_imported_is_told_in_one_line(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_local(tmp_path, checkpoints={"sd35m-checkpoint": {"path": "nowhere"}})
    (tmp_path / "params.yaml").write_text((Path(__file__).parents[2] / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["import", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert sorted(tmp_path.rglob("*")) == before


def test_only_runs_with_a_checkpoint_have_one(tmp_path: Path) -> None:
    write_local(tmp_path, checkpoints={"sd35m": {"revision": COMMIT}})
    with pytest.raises(UserError, match=r"experiments\.yaml: checkpoints: 'sd35m' is unknown; allowed: sd35m-"):
        load_local(tmp_path)
