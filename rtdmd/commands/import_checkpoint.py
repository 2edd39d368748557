"""`rtdmd import FILE [FILE] --base FOLDER --out DIR`: checkpoints of the public code in the standard layout.

    rtdmd import cold_start/generator_ema.pt rtdmd/generator_ema.pt --base ./stable-diffusion-3.5-medium --out imported
    rtdmd sample "a photo of a red circle" --from imported

Several files are stacked in their order (cold start first, then reinforcement). Everything else comes from params.yaml:
section model (with --base as its teacher), publish.format and publish.prompt. DIR is what stage publish writes, through
the same gate, and beside it DIR/students/: the adapters as the training stages leave them. Copied over results/, with
rank, alpha and targets in section adapter, `rtdmd evaluate` and `rtdmd publish` take them for this run's students.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rtdmd.backbones import Backbone
from rtdmd.backbones.sampling import Velocity
from rtdmd.common.errors import UserError
from rtdmd.common.files import save_tensors, sha256_tree, write_json
from rtdmd.common.torch_setup import configure
from rtdmd.config import ModelParams, Params, load_params
from rtdmd.pipeline.provenance import hash_of, package_versions
from rtdmd.publish.compose import Adapter
from rtdmd.publish.export_folder import PROVENANCE, Source, check_forms, finish, make_weights
from rtdmd.publish.gate import table
from rtdmd.publish.lineage_record import weights_metadata
from rtdmd.publish.reference import read_reference, stacked_student

STUDENTS = ("train_acdmd", "train_rtdmd")


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Import ``arguments.files`` into ``arguments.out``; UserError, and no folder, for what cannot be imported."""
    params = load_params(root / "params.yaml")
    if len(arguments.files) > len(STUDENTS):
        raise UserError(f"{len(arguments.files)} files; a checkpoint of each stage at most: cold start, reinforcement")
    adapters = {
        name: read_reference(root / path, arguments.alpha)
        for name, path in zip(STUDENTS, arguments.files, strict=False)
    }
    hashes = {str(path): sha256_tree(root / path) for path in arguments.files}
    source = _source(params, _on_base(params.model, arguments.base), adapters, arguments.out, hashes, root)
    with _new_folder(root / arguments.out) as folder:

        def place(name: str) -> Path:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            return folder / name

        made = make_weights(source, place)
        for name, adapter in adapters.items():
            about = {"rank": str(adapter.rank), "alpha": f"{adapter.alpha:g}", "stage": name}
            save_tensors(adapter.tensors, place(f"students/{name}/generator.safetensors"), about)
        record = _record(source.model, hashes)
        write_json(place(PROVENANCE), {**record, "sampling": {"sigmas": made.sigmas, "eta": source.model.eta}})
        told = {"settings": {}, "settings_sha256": record["settings_sha256"], "metrics": {}, "sources": hashes}
        print(table(finish(source, made, place, told)["forms"]), file=sys.stderr)
    print(arguments.out)


def _on_base(model: ModelParams, base: Path | None) -> ModelParams:
    """The model section with another base; a folder of two parts is written ./a/b, or it would name a repository."""
    if base is None:
        return model
    name = base.as_posix()
    return model.model_copy(
        update={"teacher": name if base.is_absolute() or name.startswith(".") else f"./{name}", "revision": None}
    )


def _source(
    params: Params, model: ModelParams, adapters: dict[str, Adapter], out: Path, hashes: dict[str, str], root: Path
) -> Source:
    def student(backbone: Backbone) -> Velocity:
        return stacked_student(backbone, adapters)

    return Source(
        model=model,
        forms=check_forms(params.publish.format, "lora"),
        adapters=adapters,
        full=None,
        student=student,
        prompt=params.publish.prompt,
        called=out.as_posix(),
        threads=params.run.threads,
        seed=params.run.seed,
        metadata=weights_metadata(_record(model, hashes)),
        root=root,
        device=configure(params.run),
    )


def _record(model: ModelParams, hashes: dict[str, str]) -> dict[str, object]:
    """Where the folder comes from, as `rtdmd trace` reads it."""
    settings = {"model": model.model_dump(mode="json")}
    return {
        "settings": settings,
        "settings_sha256": hash_of(settings),
        "inputs": {"import": hashes},
        "versions": {"import": package_versions()},
    }


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name when all went well, and is gone otherwise."""
    if out.exists():
        raise UserError(f"--out {out}: is there already; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield partial
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
