"""Stage cache_teacher: the teacher on this machine, and its own text conditioning of every prompt and of the null
prompt.

Run `rtdmd cache_teacher`: it reads params.yaml and the prompt files and writes results/cache_teacher/. Killed, it goes
on where it stopped. The rows are spread over the embeddings files that dvc.yaml declares (one, unless you add some).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from rtdmd.backbones import Conditioning, require_whole
from rtdmd.backbones.sizes import folder_configs, require_suites
from rtdmd.backbones.snapshot import base_folder
from rtdmd.common.errors import UserError
from rtdmd.common.progress import progress
from rtdmd.common.torch_setup import configure
from rtdmd.conditioning.text_cache import NULL_PROMPT, PROMPT_FOLDER, cache_key, storage_key, text_encoder, write_index
from rtdmd.conditioning.text_store import Encode, Layout, NotZeroError, RowWriter
from rtdmd.config.data import CacheTeacherParams
from rtdmd.pipeline.stage import Stage, open_stage
from rtdmd.prompts.records import read_prompts

GIB = 2**30


def run(root: Path = Path(".")) -> None:
    """Run the stage in the repository at ``root``."""
    with open_stage("cache_teacher", root) as stage:
        params = stage.params
        device = configure(params.run)
        files = {split: stage.input(f"{PROMPT_FOLDER}/{split}.jsonl") for split in ("train", "eval")}
        prompts = [NULL_PROMPT, *dict.fromkeys(p.prompt for path in files.values() for p in read_prompts(path))]
        require_whole(params.model, root)  # all of it is here and fits, for the stages after this one too
        if params.model.is_hub_id:  # a local folder was looked at when the stage started
            folder = base_folder(params.model, text=True, root=root)
            require_suites(params, folder_configs(folder, params.model.key), params.model.teacher)
        encode = text_encoder(params.model, device, root)
        stored = prompts if params.cache_teacher.mode == "cache" else prompts[:1]
        writer = embed(stage.run_dir, embeddings_files(stage), stored, encode, params.cache_teacher)
        outputs = [stage.output(name) for name in writer.names]
        writer.move(outputs)
        key = cache_key(params.model, files, root) | {"cache_teacher": storage_key(params.cache_teacher)}
        spans = dict(zip(outputs, writer.spans(), strict=True))
        write_index(stage.output("index.json"), prompts, spans, writer.layout, key)


def embeddings_files(stage: Stage) -> list[str]:
    """Names of the embeddings files that dvc.yaml declares, in the order of their rows."""
    outs = [PurePosixPath(out).name for out in stage.entry.outs]
    return [name for name in outs if name.startswith("embeddings") and name.endswith(".safetensors")]


def embed(
    folder: Path, names: Sequence[str], prompts: Sequence[str], encode: Encode, params: CacheTeacherParams
) -> RowWriter:
    """The complete writer of the conditioning of ``prompts``, gone on with where ``folder`` holds a beginning.

    UserError, before anything is written, where the files would exceed the budget or the disk.
    """
    writer = RowWriter.resume(folder, names, len(prompts))
    if writer is None:
        layout = Layout.of(encode(prompts[: params.batch_size]), params.storage_dtype, params.unpadded)
        writer = begin(folder, names, len(prompts), layout, params)
    try:
        return _fill(writer, prompts, encode, params.batch_size)
    except NotZeroError:  # the first batch looked padded, and is not: every number is stored
        layout = Layout(params.storage_dtype, writer.layout.shapes, {})
        return _fill(begin(folder, names, len(prompts), layout, params), prompts, encode, params.batch_size)


def begin(folder: Path, names: Sequence[str], rows: int, layout: Layout, params: CacheTeacherParams) -> RowWriter:
    """A writer of empty files, after saying how large they become; UserError where that is too large."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    size = rows * layout.row_bytes()
    free = shutil.disk_usage(folder).free
    message = f"cache_teacher: {rows} prompts x {layout.row_bytes()} bytes in {layout.dtype}: {size / GIB:.3g} GiB"
    print(f"{message} (budget {params.budget_gib:g} GiB, free on disk {free / GIB:.3g} GiB)", file=sys.stderr)
    instead = "set cache_teacher.mode: on_the_fly, or store less (storage_dtype, unpadded, model.max_sequence_length)"
    if size > params.budget_gib * GIB:
        raise UserError(f"{message}, above cache_teacher.budget_gib: {params.budget_gib:g}; raise it, {instead}")
    if size > free:
        raise UserError(f"{message}, and the disk of {folder.parent} has {free / GIB:.3g} GiB; make room, {instead}")
    writer = RowWriter(folder, names, rows, layout)
    writer.begin()
    return writer


def _fill(writer: RowWriter, prompts: Sequence[str], encode: Encode, batch_size: int) -> RowWriter:
    """Encode and write all rows that are not yet there, ``batch_size`` at a time."""
    batches = range(writer.done, len(prompts), batch_size)
    total = -(-len(prompts) // batch_size)
    done = total - len(batches)
    for start in progress(batches, desc="cache_teacher", unit="batch", initial=done, total=total):
        batch = prompts[start : start + batch_size]
        cond = encode(batch)
        check_finite(cond, batch)
        writer.write(cond)
    return writer


def check_finite(cond: Conditioning, prompts: Sequence[str]) -> None:
    """UserError that names the first prompt whose conditioning is not finite."""
    for name, tensor in cond.tensors.items():
        bad = ~torch.isfinite(tensor).flatten(1).all(1)
        if bad.any():
            prompt = prompts[int(bad.nonzero()[0])]
            raise UserError(f"the text encoders' {name} of {prompt!r} is not finite; see model.dtype")
