"""What a run leaves that nobody disturbs: every stage in its order, in one process, without an engine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rtdmd.common.files import sha256_file
from rtdmd.pipeline.dvc_yaml import read_pipeline
from tests.workflow.checkout import clone, run

STAGES = """
from importlib import import_module
from pathlib import Path
from rtdmd.pipeline.dvc_yaml import read_pipeline
for name in read_pipeline(Path(".")):
    import_module(f"rtdmd.stages.{name}").run(Path("."))
"""


def hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every output of dvc.yaml in `root`; a missing one is an error."""
    return {path: sha256_file(root / path) for stage in read_pipeline(root).values() for path in stage.outs}


def undisturbed(source: Path, root: Path) -> dict[str, str]:
    """The hashes after a run of `source`'s commit in a clone at `root`, which is removed."""
    clone(source, root)
    run(root, sys.executable, "-c", STAGES)
    found = hashes(root)
    shutil.rmtree(root)
    return found
