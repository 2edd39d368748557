"""Fixtures of lineage, trace and upload: a repository that was run, made once a session."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def run_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed: `copy_repository` gives a copy."""
    from tests.publish.publication import make_repository

    return make_repository(tmp_path_factory.mktemp("lineage") / "repository")
