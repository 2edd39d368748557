"""Every preset makes a whole DAG: both engines read it, and Snakemake's dry run asks for every stage once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from rtdmd.config import PRESETS
from rtdmd.pipeline.dvc_yaml import read_pipeline

REPOSITORY = Path(__file__).parents[2]
DRY_RUNS = """
import json
import sys
from pathlib import Path
from rtdmd.config import NOTES, preset
from rtdmd.config.real import REAL
from rtdmd.config.render import params_text
from rtdmd.pipeline.dvc_yaml import read_pipeline
from rtdmd.plan.resources import FOLDER, plan_key
from snakemake.cli import main
for name in sys.argv[1:]:
    Path("params.yaml").write_text(params_text(preset(name), name, NOTES.get(name, ())))
    if name in REAL:  # a kept plan: tests/plan makes the real ones, which take a quarter of a minute each
        kept = Path(FOLDER) / f"{plan_key(preset(name), Path())}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        need = {"mem_mb": 1000, "runtime": 5, "gpu": 1}
        kept.write_text(json.dumps({stage: need for stage in read_pipeline(Path())}))
    try:
        main(["--dry-run", "--cores", "1"])
    except SystemExit as end:
        print("PRESET", name, end.code, flush=True)
"""


def test_every_preset_passes_a_dry_run(tmp_path: Path) -> None:
    """In a copy of the repository without results, in one process for all (most of the time is its imports)."""
    for name in ("Snakefile", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for name in ("workflow", "rtdmd", "tools", "data", ".dvc"):
        left_out = shutil.ignore_patterns("__pycache__", "cache", "tmp")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=left_out)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUNS, *PRESETS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    ends = [line for line in done.stdout.splitlines() if line.startswith("PRESET")]
    assert ends == [f"PRESET {name} 0" for name in PRESETS], done.stderr[-2000:]
    counts = [line.split() for line in done.stdout.splitlines()]  # a table of jobs before and after: name, count
    for stage in (*read_pipeline(REPOSITORY), "all"):
        assert counts.count([stage, "1"]) == 2 * len(PRESETS), stage
    assert counts.count(["total", str(len(read_pipeline(REPOSITORY)) + 1)]) == 2 * len(PRESETS)
