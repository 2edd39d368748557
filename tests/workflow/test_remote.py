"""A newcomer pulls what was published and neither engine has anything to do; others' runs come from the run cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.workflow.agreement import set_param
from tests.workflow.checkout import clone, commit, copy, run
from tests.workflow.test_agreement import edit_params, nothing_to_do

TITLE = "a title that somebody else tried"


@pytest.fixture(scope="module")
def published(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose results are in a remote, a local folder, with a run of another title in the run cache."""
    root = copy(finished, tmp_path_factory.mktemp("published") / "checkout")
    run(root, "dvc", "remote", "add", "--default", "store", str(root.parent / "store"))
    commit(root, "remote")
    params = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(set_param("report.title", TITLE)(params))
    run(root, "dvc", "repro")
    run(root, "dvc", "push", "--run-cache")
    (root / "params.yaml").write_text(params)
    run(root, "dvc", "repro")
    run(root, "dvc", "push")
    return root


def test_a_newcomer_pulls_and_has_nothing_to_do(published: Path, tmp_path: Path) -> None:
    root = clone(published, tmp_path / "newcomer")
    assert not (root / "results/train_rtdmd/generator.safetensors").exists()
    (root / ".venv").mkdir()
    (root / ".venv" / "installed-from-lock").touch()  # this environment serves
    run(root, "make", "pull")
    assert nothing_to_do(root)
    weights = "results/train_rtdmd/generator.safetensors"
    assert (root / weights).read_bytes() == (published / weights).read_bytes()
    edit_params(root, "report.title", TITLE)
    said = run(root, "dvc", "repro", "--pull")
    assert "Stage 'report' is cached - skipping run, checking out outputs" in said
    assert TITLE in (root / "results/report/index.html").read_text()
    assert nothing_to_do(root)


def test_a_remote_that_lost_a_file_is_said_and_the_rest_comes(published: Path, tmp_path: Path) -> None:
    root = clone(published, tmp_path / "newcomer")
    store = tmp_path / "store"
    shutil.copytree(published.parent / "store", store)
    digest = "".join(run(root, "dvc", "data", "status", "--json").split())  # every output is missing here
    assert "generator.safetensors" in digest
    largest = max((path for path in store.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    largest.unlink()
    run(root, "dvc", "remote", "modify", "store", "url", str(store))
    said = run(root, "dvc", "pull", ok=False)
    assert "results/publish/transformer/diffusion_pytorch_model.safetensors" in said
    assert (root / "results/train_acdmd/generator.safetensors").is_file()
    dry = run(root, "snakemake", "--dry-run", "--cores", "1")
    assert "publish" in dry
    assert "train_acdmd" not in dry.split("Job stats:")[1].split("total")[0]
