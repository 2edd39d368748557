"""A source of prompts is one file: what the package finds, and the documented recipe word for word."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

from rtdmd.config import preset
from rtdmd.config.render import params_text
from rtdmd.prompts.registration import FileParams
from rtdmd.prompts.registry import SOURCES
from rtdmd.rewards.registry import NAMES
from tests.workspace import REPOSITORY

RUN = """
import json, sys
from pathlib import Path
import rtdmd
assert Path(rtdmd.__file__).parents[1] == Path.cwd(), rtdmd.__file__
from rtdmd.cli import main
assert main(["params", "check"]) == 0
assert main(["schema"]) == 0
assert main(["prepare_prompts"]) == 0
from rtdmd.config import load_params
from rtdmd.pipeline.engines import load_jobs
from rtdmd.plan.estimate import tags_of
params = load_params()
jobs = load_jobs(params)  # what a dry run of Snakemake reads
assert "rtdmd/prompts/sources/towns.py" in jobs["prepare_prompts"].inputs
assert tags_of(params.evaluate.suites[0], params) == 1
"""


def test_names_are_the_files_and_what_they_provide_is_a_reward() -> None:
    files = {path.stem for path in Path("rtdmd/prompts/sources").glob("[a-z]*.py")}
    assert set(SOURCES) == files
    for name, source in SOURCES.items():
        assert get_args(source.settings.model_fields["name"].annotation) == (name,)
        assert set(source.provides) <= set(NAMES)
        assert f"`{name}`" in Path("docs/configuration.md").read_text(encoding="utf-8")
    assert {name for name, source in SOURCES.items() if not issubclass(source.settings, FileParams)} == {
        "generated",
        "world",
    }


def test_the_documented_recipe_for_a_source(tmp_path: Path) -> None:
    """From a copy of the package in a temporary folder: settings, schema, the stage, the engines' jobs and the plan."""
    text = Path("docs/extending.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(\"\"\"towns: .*?)```", text, re.DOTALL)
    assert found is not None
    shutil.copytree(REPOSITORY / "rtdmd", tmp_path / "rtdmd", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "rtdmd/prompts/sources/towns.py").write_text(found[1])
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    (tmp_path / "data/prompts").mkdir(parents=True)
    (tmp_path / "data/world").symlink_to(REPOSITORY / "data/world")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    without_metadata = {"rewards": [{"name": "clipscore", "model": "data/world/clip", "weight": 1.0}]}
    params = params_text(preset("smoke", {"evaluate": without_metadata}), "a test")
    entry = re.search(r"`- (\{name: towns, .*?\})`", text)
    assert entry is not None and "{name: world, split: heldout}" in params
    (tmp_path / "params.yaml").write_text(params.replace("{name: world, split: heldout}", entry[1]))
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert '"TownsParams"' in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "results/prepare_prompts/eval.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["tag"]) for row in rows] == [(f"a street in town {i}", "town") for i in range(3)]
    sources = json.loads((tmp_path / "results/prepare_prompts/sources.json").read_text())["sets"]["heldout"]["sources"]
    assert [(source["name"], source["count"], source["read"]) for source in sources] == [("towns", 3, 3)]
