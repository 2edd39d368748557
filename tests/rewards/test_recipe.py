"""A scorer added by the recipe of docs/extending.md, word for word, works in everything that reads the scorers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from rtdmd.common.files import save_tensors
from tests.recipes import blocks, section
from tests.workflow.checkout import make_checkout, run

NAME = "tint"


def recipe() -> str:
    """The file that the recipe shows."""
    found = blocks(section("docs/extending.md", "A reward in the package"), "python")
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository with the file, and an entry for it in both lists of params.yaml."""
    root = make_checkout(tmp_path_factory.mktemp("recipe") / "copy")
    (root / f"rtdmd/rewards/scorers/{NAME}.py").write_text(recipe(), encoding="utf-8")
    weights = {"weight": torch.tensor([[1.0, -0.5, -0.5]]), "bias": torch.zeros(1)}
    save_tensors(weights, root / "models/tint/tint.safetensors")
    entry = {"name": NAME, "model": "./models/tint"}
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    for stage in ("train_rtdmd", "evaluate"):
        params[stage]["rewards"].append(entry)
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return root


def test_params_plan_conformance_evaluation_and_report(copy: Path) -> None:
    said = run(copy, sys.executable, "-m", "tests.rewards.recipe_run", NAME)
    assert re.search(r"^reward tint +4  frozen$", said, flags=re.MULTILINE)
    assert re.search(r"^scored -?0\.\d+ by \['tint\.safetensors'\]$", said, flags=re.MULTILINE)


def test_both_engines_would_run_it(copy: Path) -> None:
    said = run(copy, sys.executable, "-m", "snakemake", "-n", "--cores", "1")
    assert re.search(r"train_rtdmd +1$", said, flags=re.MULTILINE) and "This was a dry-run" in said
    said = run(copy, sys.executable, "-m", "dvc", "repro", "--dry", "prepare_prompts")
    assert "> python -m rtdmd prepare_prompts" in said  # the first one: what others read is not there yet
    assert re.search(r"^train_rtdmd:$", run(copy, sys.executable, "-m", "dvc", "status"), flags=re.MULTILINE)


def test_the_configuration_still_imports_nothing_heavy(copy: Path) -> None:
    code = "import sys, rtdmd.config; print(sorted({'torch', 'numpy', 'transformers', 'ftfy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
