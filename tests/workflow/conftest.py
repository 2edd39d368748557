"""One run of the whole DAG with smoke parameters for all tests of the engines; each test works on a copy of it. And a
Slurm for those that need one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workflow.checkout import commit, make_checkout, run
from tests.workflow.slurm_cluster import Cluster, missing_programs


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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of two nodes, for every command of a module; gone after it."""
    assert not missing_programs(), "`make slurm` installs what is missing"
    with Cluster(tmp_path_factory.mktemp("slurm")) as running, pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, running.env[name])
        yield running
