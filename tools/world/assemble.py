"""`rtdmd world assemble`: put the trained parts into data/world and pin them by hash.

The teacher becomes an ordinary Stable Diffusion 3 pipeline folder, the reward an ordinary CLIPModel folder. A run whose
figures fall short of what the world promises is refused, so that a bad teacher never replaces a good one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rtdmd.common.errors import RtdmdError
from rtdmd.common.files import read_json, sha256_file, tree_files, write_json
from rtdmd.pipeline.provenance import package_versions
from rtdmd.world.grammar import TAGS
from tools.world.common import WORK
from tools.world.settings import WORLD_PARAMS

TARGET = Path("data/world")
PARTS = ("text", "vae", "clip", "teacher")
FLOORS = {"vae": {"strict.heldout": 0.99}, "teacher": {"strict.heldout": 0.90}}
FLOORS["teacher"] |= {f"strict.heldout.{tag}": 0.75 for tag in TAGS}
LARGEST = 16 * 2**20  # bytes


def run(root: Path = Path(".")) -> None:
    """Copy teacher and CLIP to data/world and write manifest.json: hashes of every file, figures, recipe, versions."""
    figures = {part: read_json(root / WORK / part / "metrics.json") for part in PARTS}
    for part, floors in FLOORS.items():
        for name, floor in floors.items():
            if figures[part][name] < floor:
                raise RtdmdError(
                    f"{part}: {name} is {figures[part][name]:.3f}, below {floor}; data/world stays as it is"
                )
    target = root / TARGET
    sources = {name: root / WORK / name / name for name in ("clip", "teacher")}
    size = sum(file.stat().st_size for source in sources.values() for file in tree_files(source))
    if size > LARGEST:
        raise RtdmdError(f"data/world would hold {size} bytes, more than {LARGEST}; it stays as it is")
    for name, source in sources.items():
        partial = target / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        shutil.rmtree(target / name, ignore_errors=True)
        partial.replace(target / name)
    files = {file.relative_to(target).as_posix(): file for name in sources for file in tree_files(target / name)}
    manifest = {
        "files": {name: sha256_file(file) for name, file in files.items()},
        "bytes": size,
        "recipe": {WORLD_PARAMS.name: sha256_file(root / WORLD_PARAMS)},
        "figures": figures,
        "versions": package_versions(),
    }
    write_json(target / "manifest.json", manifest)
    write_json(root / WORK / "manifest.json", manifest)
    print(f"{target}: {len(files)} files, {size / 2**20:.1f} MiB")
