"""Sweeps: experiments in the queue and in the folder, and figures and curves that compare."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from rtdmd.config import preset
from tests.workflow.checkout import copy, git, run

MARK = '<main id="queued">'


@pytest.fixture(scope="module")
def swept(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments, queued on code that the folder no longer has when they run, then one in the folder itself."""
    root = copy(finished, tmp_path_factory.mktemp("swept") / "checkout")
    code = root / "rtdmd/report/templates/page.html"
    text = code.read_text()
    code.write_text(text.replace('<main id="content">', MARK))
    run(root, "dvc", "exp", "run", "--queue", "-S", "report.title=first,second")
    code.write_text(text)
    run(root, "dvc", "exp", "run", "--run-all")
    run(root, "dvc", "exp", "run", "-S", "train_rtdmd.generator_optimizer.lr=0.01", "--name", "fast", "train_rtdmd")
    return root


def experiments(root: Path) -> dict[str, dict[str, str]]:
    """The rows of `dvc exp show` that are experiments, by name."""
    rows = csv.DictReader(io.StringIO(run(root, "dvc", "exp", "show", "--csv")))
    return {row["Experiment"]: row for row in rows if row["Experiment"]}


def test_queued_experiments_ran_with_their_own_settings_and_code(swept: Path, tmp_path: Path) -> None:
    names = {row["report.title"]: name for name, row in experiments(swept).items() if name != "fast"}
    assert set(names) == {"first", "second"}
    root = copy(swept, tmp_path / "checkout")
    git(root, "checkout", "--quiet", "--force", "HEAD")
    run(root, "dvc", "exp", "apply", names["second"])
    page = (root / "results/report/index.html").read_text()
    assert "<title>second</title>" in page
    assert MARK in page


def test_figures_and_curves_of_experiments_compare(swept: Path) -> None:
    """What is compared is in Git: small, and the same for everyone who fetches the experiment."""
    params = json.loads(run(swept, "dvc", "params", "diff", "HEAD", "fast", "--json"))
    rate = preset("smoke").train_rtdmd.generator_optimizer.lr
    change = {"old": rate, "new": 0.01, "diff": pytest.approx(0.01 - rate)}
    assert params == {"params.yaml": {"train_rtdmd.generator_optimizer.lr": change}}
    run(swept, "dvc", "plots", "diff", "HEAD", "fast", "--targets", "results/train_rtdmd/curves.csv", "-o", "plots")
    page = (swept / "plots/index.html").read_text()
    assert "curves.csv" in page
    assert '"rev": "fast"' in page
    tables = [path for path in git(swept, "ls-files", "results").split() if Path(path).suffix in (".csv", ".json")]
    assert len(tables) == 7
    assert max((swept / path).stat().st_size for path in tables) < 100_000


def test_metrics_of_two_commits_compare(swept: Path) -> None:
    told = run(swept, "dvc", "metrics", "diff", "--all", "HEAD", "fast")
    assert "train_rtdmd.strict.mean" in told
    assert "results/prepare_prompts/summary.json" in told
