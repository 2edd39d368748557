"""Stand-ins that several tests share, made once."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder by name of the stand-ins of every real preset's bases. Not to be changed."""
    from rtdmd.config import preset
    from rtdmd.config.real import REAL
    from rtdmd.rehearse.bases import stand_ins

    root = tmp_path_factory.mktemp("bases")
    made = {}
    for one in [one for name in REAL for one in stand_ins(preset(name))]:
        made[one.repo] = root / one.repo
        made[one.repo].mkdir(parents=True)
        one.write(made[one.repo])
    return made
