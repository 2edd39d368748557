"""`rtdmd import FILE [FILE] --base FOLDER --out DIR`: checkpoints of the public code in the standard layout.

    rtdmd import cold_start/generator_ema.pt rtdmd/generator_ema.pt --base ./stable-diffusion-3.5-medium --out imported
    rtdmd sample "a photo of a red circle" --from imported

    rtdmd import --experiment sd35m-checkpoint

Several files are stacked in their order (cold start first, then reinforcement). What a file records (its base, alpha,
steps) is taken from it; where it does not say its base or its alpha, the command asks for them. The rest comes from
params.yaml: section model, publish.format and publish.prompt. With --experiment everything comes from a run of the
published tables and workflow/experiments.yaml (`rtdmd experiments checkpoints`), and an adapter alone is written.

DIR is what stage publish writes, through the same gate, and beside it DIR/students/: the adapters as the training
stages leave them. Copied over results/, with rank, alpha and targets in section adapter and the same section model,
`rtdmd evaluate` takes them for this run's students.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtdmd.backbones import Backbone
from rtdmd.backbones.sampling import Velocity
from rtdmd.common.digests import cached_tree_digest
from rtdmd.common.errors import UserError
from rtdmd.common.escape import printable
from rtdmd.common.files import hash_of, save_tensors, sha256_tree, write_json
from rtdmd.common.torch_setup import configure
from rtdmd.config import ModelParams, Params, load_params
from rtdmd.experiments.checkpoints import wanted
from rtdmd.pipeline.provenance import package_versions
from rtdmd.publish.adapter import Adapter, read_adapter, trained_on_merged
from rtdmd.publish.export import check_forms, finish, make_weights
from rtdmd.publish.gate import Source, table
from rtdmd.publish.known_bases import check_base, check_known_base
from rtdmd.publish.records import PROVENANCE, weights_metadata
from rtdmd.publish.reference import stacked_student
from rtdmd.publish.sampler import recorded, with_base
from rtdmd.train.student_record import MERGED

STUDENTS = ("train_acdmd", "train_rtdmd")


@dataclass(frozen=True)
class Asked:
    """What is imported, and as what. ``files``: by what the record calls them; ``form``: of publish.format."""

    params: Params
    files: dict[str, Path]
    adapters: dict[str, Adapter]  # by stage, in their order
    base: str | None
    out: Path
    form: str


def run(arguments: argparse.Namespace, root: Path = Path(".")) -> None:
    """Import ``arguments.files`` into ``arguments.out``; UserError, and no folder, for what cannot be imported."""
    asked = _asked(arguments, root)
    params = asked.params
    adapters = asked.adapters
    model = _model(params.model, asked, root)
    hashes = {name: sha256_tree(path) for name, path in asked.files.items()}
    record = _record(model, hashes, root)
    for name, adapter in zip(asked.files, adapters.values(), strict=True):
        print(f"{name}: rank {adapter.rank}, alpha {adapter.alpha:g}, on {printable(model.teacher)}", file=sys.stderr)
    source = _source(asked, model, record, root)
    with _new_folder(root / asked.out) as folder:

        def output_path(name: str) -> Path:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            return folder / name

        exported = make_weights(source, output_path)
        for (name, adapter), path in zip(adapters.items(), asked.files.values(), strict=True):
            about = {"rank": str(adapter.rank), "alpha": f"{adapter.alpha:g}", "stage": name}
            about |= {"model": json.dumps(model.model_dump(mode="json"), sort_keys=True), "imported": "true"}
            about |= MERGED if name == "train_rtdmd" and trained_on_merged(path) else {}
            save_tensors(adapter.tensors, output_path(f"students/{name}/generator.safetensors"), about)
        write_json(
            output_path(PROVENANCE), {**record, "sampling": {"sigmas": exported.sigmas, "eta": source.model.eta}}
        )
        card_context = {"settings": {}, "settings_sha256": record["settings_sha256"], "metrics": {}, "sources": hashes}
        print(table(finish(source, exported, output_path, card_context)["forms"]), file=sys.stderr)
    print(asked.out)


def _asked(arguments: argparse.Namespace, root: Path) -> Asked:
    """What the command line says, or the run of the tables that it names. UserError where it says both, or neither."""
    if arguments.experiment is not None:
        if arguments.files or arguments.out or arguments.base or arguments.alpha is not None:
            raise UserError(
                "import: --experiment RUN stands alone; `checkpoints` in workflow/experiments.yaml says where its files"
                " are"
            )
        found = wanted(arguments.experiment, root)
        adapters = _adapters(found.files, found.alpha)
        own = found.params.model.of_student()
        check_known_base(own, list(found.files.values()), adapters)
        return Asked(found.params, found.files, adapters, own.teacher, found.out, "lora")
    if not arguments.files or arguments.out is None:
        raise UserError("import: name checkpoints and --out DIR, or --experiment RUN")
    if len(arguments.files) > len(STUDENTS):
        raise UserError(f"{len(arguments.files)} files; a checkpoint of each stage at most: cold start, reinforcement")
    params = load_params(root / "params.yaml")
    files = {str(path): root / path for path in arguments.files}
    if len(files) < len(arguments.files):
        raise UserError(f"{arguments.files[0]} is named twice; name each checkpoint once")
    adapters = _adapters(files, arguments.alpha)
    return Asked(params, files, adapters, arguments.base, arguments.out, params.publish.format)


def _adapters(files: dict[str, Path], alpha: float | None) -> dict[str, Adapter]:
    return {name: read_adapter(path, alpha) for name, path in zip(STUDENTS, files.values(), strict=False)}


def _model(model: ModelParams, asked: Asked, root: Path) -> ModelParams:
    """Section model of the import, on the student's base: as the files record it, else the params' with the base that
    they stand on."""
    files = list(asked.files.values())
    base = asked.base
    records = [found for path in files if (found := recorded(path)) is not None]
    if records:
        for other in records[1:]:
            if other.model != records[0].model:
                raise UserError(
                    f"{other.where} and {records[0].where} record different models; import one after the other"
                )
        return records[0].on(base, root)
    own = model.of_student()
    if base is not None:
        return with_base(own, base, root)
    check_base(own, files, asked.adapters)
    return own


def _source(asked: Asked, model: ModelParams, record: dict[str, Any], root: Path) -> Source:
    params = asked.params
    out = asked.out

    def student(backbone: Backbone) -> Velocity:
        return stacked_student(backbone, asked.adapters)

    return Source(
        model=model,
        forms=check_forms(asked.form, "lora"),
        adapters=asked.adapters,
        full=None,
        student=student,
        prompt=params.publish.prompt,
        called=out.name if out.is_absolute() else out.as_posix(),
        threads=params.run.threads,
        seed=params.run.seed,
        metadata=weights_metadata(record),
        root=root,
        device=configure(params.run),
    )


def _record(model: ModelParams, hashes: dict[str, str], root: Path) -> dict[str, Any]:
    """Where the folder comes from, as `rtdmd trace` reads it."""
    settings = {"model": model.model_dump(mode="json")}
    base = None if model.is_hub_id else cached_tree_digest(root / model.teacher, root)
    return {
        "settings": settings,
        "settings_sha256": hash_of(settings),
        "inputs": {"import": hashes},
        "versions": {"import": package_versions()},
        "teacher": {"name": model.teacher, "revision": model.revision, "sha256": base},
    }


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name when all went well, and is gone otherwise."""
    if out.exists():
        raise UserError(f"--out {out}: exists already; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield partial
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
