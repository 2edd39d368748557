"""One run of the whole DAG with smoke parameters for all tests of the engines; each test works on a copy of it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.workflow.checkout import commit, make_checkout, run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after `snakemake --cores 2` and a commit of what it wrote. Read it, copy it, clone it; no more."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # the workers share one
    root = base / "finished"
    with (base / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / ".rtdmd" / "finished").exists():
            make_checkout(root)
            run(root, "snakemake", "--cores", "2", "--quiet")
            commit(root, "results")
            (root / ".rtdmd" / "finished").touch()
    return root
