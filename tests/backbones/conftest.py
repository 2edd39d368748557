"""One tiny folder, plain pipeline and backbone for each family, shared by the tests of this folder."""

from __future__ import annotations

import pytest

from tests.backbones.families import FAMILIES, Loaded, load


@pytest.fixture(scope="session", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The family under test."""
    return load(FAMILIES[request.param], tmp_path_factory.mktemp("families") / request.param)
