"""The gate on what a repository holds: a whole revision, downloaded as a stranger would, against the student here.

The stage's gate tests the folder that is sent. What a repository gives back may be more: files that were there before,
which a loader takes instead. So the same test can be made of the revision, before it reaches `main`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rtdmd.config import Params
from rtdmd.publish.export_folder import check_forms, make_weights, put_through
from rtdmd.publish.gate import table
from rtdmd.publish.student_source import WEIGHTS, student_source


def gate_folder(folder: Path, params: Params, root: Path, repo_id: str) -> None:
    """Put a downloaded revision of ``repo_id`` through the gate; RtdmdError with every reason where it does not pass.

    params, root: the run whose student it is; UserError where its files are missing.
    """
    forms = check_forms(params.publish.format, params.adapter.mode)
    paths = {name: root / path for name, path in WEIGHTS.items()}
    source = student_source(params, root, paths, forms, metadata={})
    with tempfile.TemporaryDirectory() as scratch:

        def output_path(name: str) -> Path:
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            return path

        exported = make_weights(source, output_path)
    print(table(put_through(source, exported, folder, repo_id)["forms"]), file=sys.stderr)
