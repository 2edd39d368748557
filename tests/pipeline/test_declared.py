"""Models and forms that dvc.yaml's outputs do not have are said, and the files are those that are written."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.cli import main
from rtdmd.config import preset
from rtdmd.config.render import params_text
from rtdmd.pipeline.declared import FILES
from rtdmd.publish.merge import CONFIG, MERGED
from tests.workspace import REPOSITORY


def test_the_files_are_those_that_are_written() -> None:
    assert FILES == {"lora": (PUBLISHED,), "merged": (MERGED, CONFIG)}


def test_what_dvc_leaves_to_git_is_not_ignored_by_git() -> None:
    """Metrics and curves have no copy in DVC's cache."""
    left = []
    for stage in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].values():
        for entry in (*stage.get("metrics", []), *stage.get("plots", [])):
            left += [path for path, how in entry.items() if how.get("cache") is False]
    assert "results/train_rtdmd/watched.csv" in left
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", *left], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"evaluate": {"models": ["teacher", "train_acdmd", "train_rtdmd"]}},
            "outputs differ by teacher_few_step; name",
        ),
        (
            {"publish": {"format": "lora"}},
            "publish.format: lora: take it from the outs of publish in dvc.yaml: results/",
        ),
    ],
)
def test_params_check_says_it(
    changes: dict[str, Any],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "dvc.yaml").write_text((REPOSITORY / "dvc.yaml").read_text())
    (tmp_path / "params.yaml").write_text(params_text(preset("world", changes), "a test"))
    monkeypatch.chdir(tmp_path)
    assert main(["params", "check"]) == 2
    assert says in capsys.readouterr().err
