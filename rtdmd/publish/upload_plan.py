"""What would be uploaded, and whether it may be.

To the stage's own files (results/publish, which depend on inputs alone) come what only the moment of leaving knows: the
Git commit, what it and dvc.lock do not hold, the lineage in dvc.lock, the class of hardware. It is written to
`upload.json` and, for people, at the end of the model card. Only what dvc.yaml declares as the stage's output can
leave, and of weights only weights.

A file is read once: what is checked here, hashed here and sent later are the same bytes. Only large weights stay on
disk; whoever sends them compares the hash of what was sent with the one that was taken here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rtdmd.common.errors import UserError
from rtdmd.common.escape import printable
from rtdmd.common.files import hash_of, json_text, sha256_bytes, sha256_file, tree_files
from rtdmd.common.parsing import parse_json
from rtdmd.pipeline.dvc_yaml import read_pipeline
from rtdmd.pipeline.lineage import Step, behind, differences, flat, lock_hash, lock_tree, read_lock
from rtdmd.pipeline.provenance import GitState, git_state, hardware_class, package_versions
from rtdmd.publish.records import GATE, PROVENANCE, RESOLVED, UPLOAD, header_of

STAGE = "publish"
FOLDER = f"results/{STAGE}"
CARD = "README.md"
NOT_GATED = frozenset({GATE, RESOLVED})  # written after the gate, from its inputs
KINDS = frozenset({".json", ".md", ".png", ".py", ".safetensors"})
IN_MEMORY = 16 * 2**20  # bytes; weights above it are read again while they are sent, and their hash is compared
STATE_WORDS = frozenset({"exp_avg", "exp_avg_sq", "momentum_buffer", "optimizer", "optim", "grad", "step", "rng_state"})
"""Parts of tensor names by which optimizer and run state are known (PyTorch's own names)."""
WEIGHTS_FOLDERS = frozenset({".", "transformer"})  # where a published folder has its weights
WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".gguf"})
INDEX = re.compile(r".+\.index(\.[^.]+)?\.json")  # of shards; a variant's has its name in it
DESCRIPTIONS = frozenset({"adapter_config.json", "transformer/config.json"})  # of weights that are not the published

Content = bytes | Path


@dataclass(frozen=True)
class Publication:
    """The files that leave, by their path in the repository, and what they are called there."""

    repo_id: str
    private: bool
    tag: str
    files: dict[str, Content]
    sha256: dict[str, str]
    record: dict[str, Any]  # upload.json
    left_here: tuple[str, ...]  # files of the folder that do not leave

    @property
    def branch(self) -> str:
        """Where the files wait until they are verified."""
        return f"upload-{self.tag}"

    @property
    def reasons(self) -> list[str]:
        """Why it cannot be made again from its commit alone; empty when it can."""
        return _reasons(self.record["changed_files"], self.record["stale"], self.record["git_commit"])

    def size(self, path: str) -> int:
        """Bytes of one file."""
        content = self.files[path]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def make_publication(root: Path, repo_id: str | None, private: bool, allow_dirty: bool = False) -> Publication:
    """The publication of `root/results/publish`.

    UserError without a repository, for files that are missing or must not leave, and, unless ``allow_dirty``, when the
    commit or dvc.lock does not hold what is here.
    """
    if repo_id is None:
        raise UserError(f"publish.repo_id: null; set it to owner/name and run `snakemake {STAGE}`: the card names it")
    steps = behind(STAGE, read_lock(root))
    state = git_state(root, [path for step in steps for path in step.inputs])
    stale = [str(one) for one in differences(root, steps)]
    reasons = _reasons(state.changed, stale, state.commit)
    if reasons and not allow_dirty:
        raise UserError(_refusal(reasons, stale))
    folder = stage_files(root)
    sha256 = {name: _sha256(content) for name, content in sorted(folder.items())}
    check_gate(folder, sha256)
    check_named(folder, repo_id)
    record = _record(root, steps, state, stale, sha256)
    files = dict(folder)
    files[CARD] = with_section(_bytes(folder[CARD]).decode(), repo_id, record, reasons).encode()
    sha256[CARD] = _sha256(files[CARD])
    record["files"] = dict(sha256)
    files[UPLOAD] = json_text(record).encode()
    sha256[UPLOAD] = _sha256(files[UPLOAD])
    present = [path.relative_to(root / FOLDER).as_posix() for path in tree_files(root / FOLDER)]
    left = tuple(path for path in present if path not in folder)
    return Publication(repo_id, private, record["tag"], files, sha256, record, left)


def _reasons(changed: list[str] | tuple[str, ...], stale: list[str], commit: str | None) -> list[str]:
    outside = [] if commit else ["this folder is no Git checkout"]
    return [*outside, *(f"{printable(path)} is not as in the commit" for path in changed), *stale]


def _refusal(reasons: list[str], stale: list[str]) -> str:
    """One line: what is wrong first, and what to do about it."""
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    what = "run the stages again (`snakemake publish`)" if stale else "commit (dvc.lock and results/ too)"
    return f"not published: {(stale or reasons)[0]}{more}; {what}, or publish it as it is with --allow-dirty"


def stage_files(root: Path) -> dict[str, Content]:
    """The outputs that dvc.yaml declares for stage publish, by their path in the repository, each read once; large
    weights stay a path. UserError for one that is missing or must not leave."""
    found: dict[str, Content] = {}
    for out in read_pipeline(root)[STAGE].outs:
        path = root / out
        name = PurePosixPath(out).relative_to(FOLDER).as_posix()
        if not path.is_file():
            raise UserError(f"{out}: no such file; `snakemake {STAGE}` makes it")
        if path.suffix not in KINDS:
            raise UserError(f"{out}: files of this kind are not uploaded; allowed: {', '.join(sorted(KINDS))}")
        weights = path.suffix == ".safetensors"
        if weights:
            check_weights(path, out)
        found[name] = path if weights and path.stat().st_size > IN_MEMORY else path.read_bytes()
    return found


def check_gate(folder: Mapping[str, Content], sha256: Mapping[str, str]) -> None:
    """UserError unless `gate.json` says that exactly these files passed the stage's gate."""
    if GATE not in folder:
        raise UserError(f"{FOLDER}: no {GATE}, so no upload; `snakemake {STAGE}` tests the folder and writes it")
    passed: dict[str, str] = _json(folder, GATE)["sha256"]
    for name, digest in sha256.items():
        if name not in NOT_GATED and passed.get(name) != digest:
            raise UserError(f"{FOLDER}/{name} is not what passed the gate; `snakemake {STAGE}` makes and tests it")


def check_named(folder: Mapping[str, Content], repo_id: str) -> None:
    """UserError when the card, whose code passed the gate, was written for another repository."""
    settings = _json(folder, PROVENANCE)["settings"] if PROVENANCE in folder else {}
    named = flat(settings).get("publish.repo_id")
    if named != repo_id:
        raise UserError(
            f"publish.repo_id: {repo_id}, but the card was written for {named}; `snakemake {STAGE}` writes it anew"
        )


def _json(folder: Mapping[str, Content], name: str) -> Any:
    return parse_json(_bytes(folder[name]), f"{FOLDER}/{name}", f"`snakemake {STAGE}` makes it again")


def _bytes(content: Content) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def check_weights(path: Path, name: str) -> None:
    """UserError when a file of weights holds the state of an optimizer or of a run."""
    for tensor in header_of(path)[0]:
        if STATE_WORDS.intersection(tensor.split(".")):
            raise UserError(f"{name}: the tensor {tensor} is training state, not a weight; it is not uploaded")


def header_bytes(path: Path) -> bytes:
    """The header of a safetensors file: names and texts, as they stand in it."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return file.read(min(size, path.stat().st_size))


def _sha256(content: Content) -> str:
    return sha256_bytes(content) if isinstance(content, bytes) else sha256_file(content)


def _record(
    root: Path, steps: list[Step], state: GitState, stale: list[str], folder: Mapping[str, str]
) -> dict[str, Any]:
    """upload.json without the list of files: nothing in it changes from one attempt to the next on one machine."""
    lineage = lock_hash(steps)
    tag = f"dvc-{lineage[:16]}"
    if _reasons(state.changed, stale, state.commit):  # a name of its own: the clean one is for what can be made again
        files = [path for path in state.changed if (root / path).is_file()]
        contents = {printable(path): _sha256(root / path) for path in files}
        tag += f"-dirty-{hash_of([contents, stale, dict(folder)])[:8]}"
    return {
        "tag": tag,
        "git_commit": state.commit,
        "changed_files": [printable(path) for path in state.changed],
        "stale": stale,
        "dvc_lock": {"sha256": lineage, "stages": lock_tree(steps)},
        "uploaded_from": {"hardware": hardware_class(), "versions": package_versions()},
        "folder": dict(folder),
    }


def with_section(card: str, repo_id: str, record: Mapping[str, Any], reasons: list[str]) -> str:
    """The card with where it was published from and, when that is so, that it cannot be made again."""
    commit = f"commit `{record['git_commit']}`" if record["git_commit"] else "no Git commit"
    lines = [
        card.rstrip(),
        "",
        "## Published from",
        "",
        f"Code: {commit}. Lineage in `dvc.lock`: `{record['dvc_lock']['sha256']}`, tag `{record['tag']}`."
        f" `{UPLOAD}` holds that lineage and the SHA-256 of every file; `rtdmd trace {repo_id}` compares both"
        " with a checkout.",
    ]
    if reasons:
        lines += [
            "",
            "**Published with `--allow-dirty`: the commit and `dvc.lock` do not hold all that made this.**",
            "",
        ]
        lines += [f"- {reason}" for reason in reasons]
    return "\n".join(lines) + "\n"


def plan_text(publication: Publication) -> str:
    """What would be sent where."""
    kind = "private" if publication.private else "public"
    lines = [f"{publication.repo_id} ({kind}), tag {publication.tag}"]
    lines += [
        f"  {path:42} {publication.size(path):>12,} bytes  {digest[:12]}"
        for path, digest in sorted(publication.sha256.items())
    ]
    if publication.left_here:
        lines.append(f"  stays here: {', '.join(publication.left_here)}")
    lines += [f"  not clean: {reason}" for reason in publication.reasons]
    return "\n".join(lines)


def shadows(there: Iterable[str], published: Collection[str]) -> list[str]:
    """Files of a repository that would be loaded in place of the weights among ``published``, or beside them; sorted.

    diffusers and transformers look a folder's weights up by name: an index of shards goes before one file, a `.bin` is
    taken where there is no `.safetensors`, a variant (`.fp16.`) where one asks for it, `load_lora_weights` takes any
    adapter that it finds. So of such files the published ones must be the only ones. there: every path in the
    repository. Other files (a licence, notes, a VAE's folder) are not ours to remove.
    """
    return sorted(path for path in there if path not in published and _describes_weights(path))


def _describes_weights(path: str) -> bool:
    place = PurePosixPath(path)
    if path in DESCRIPTIONS:
        return True
    if str(place.parent) not in WEIGHTS_FOLDERS:
        return False
    return place.suffix in WEIGHTS or INDEX.fullmatch(place.name) is not None
