"""`rtdmd world assemble`: put the trained parts into data/world and pin them by hash.

The teacher becomes an ordinary Stable Diffusion 3 pipeline folder, the reward an ordinary CLIPModel folder. A run
whose teacher has not SD3.5-M's row (tools/world/teacher_row.py) is refused, so that a bad teacher never replaces a good
one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from rtdmd.common.errors import RtdmdError
from rtdmd.common.files import read_json, sha256_file, tree_files, write_json
from rtdmd.pipeline.provenance import package_versions
from tools.world.common import WORK
from tools.world.settings import WORLD_PARAMS
from tools.world.teacher import HELDOUT_IMAGES
from tools.world.teacher_row import shortcomings

TARGET = Path("data/world")
PARTS = ("text", "vae", "clip", "teacher", "imperfect")
VAE_FLOOR = 0.99  # strict score of decoded real images: an error is then the teacher's, not the autoencoder's
LARGEST = 16 * 2**20  # bytes


def run(root: Path = Path(".")) -> None:
    """Copy teacher and CLIP to data/world and write manifest.json: hashes of every file, figures, recipe, versions."""
    figures = {part: read_json(root / WORK / part / "metrics.json") for part in PARTS}
    found = shortcomings(figures["imperfect"], "heldout", HELDOUT_IMAGES)
    own = figures["vae"]["strict.heldout"]
    if own < VAE_FLOOR:
        found.append(f"the autoencoder's images are right with {own:.3f}, below {VAE_FLOOR}")
    if found:
        raise RtdmdError(f"the teacher is not as it should be: {'; '.join(found)}; data/world stays as it is")
    target = root / TARGET
    sources = {"clip": root / WORK / "clip" / "clip", "teacher": root / WORK / "imperfect" / "teacher"}
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
