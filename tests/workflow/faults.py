"""What can go wrong around a run, one fault at a time: what the engines say, and the command that makes it good.

    python -m tests.workflow.faults                    # the whole table (docs/evidence/faults.md)
    python -m tests.workflow.faults --only cache       # rows that match

Each fault is made in a copy of a finished checkout; `meets` is what a person runs next and what it answers, `mend` the
documented next command, after which every output must have its bytes again. Exit code 1 where one has not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rtdmd.common.files import md5_file
from rtdmd.pipeline.dvc_cache import object_path
from rtdmd.pipeline.dvc_repo import cache_folder
from rtdmd.pipeline.dvc_yaml import read_pipeline
from tests.workflow.checkout import commit, copy, environment, make_checkout, run
from tests.workflow.kills import SMALL, is_stage, orphans
from tests.workflow.undisturbed import hashes

SNAKEMAKE, DVC = "snakemake --cores 1", "dvc repro"
WEIGHTS = "results/train_acdmd/generator.safetensors"
TEACHER, BASE = "data/world/teacher", "transformer/diffusion_pytorch_model.safetensors"
RWLOCK = ".dvc/tmp/rwlock"


@dataclass(frozen=True)
class Fault:
    """A fault; `meets` is ("", "") where the engine itself makes it good, `says` a regular expression."""

    name: str
    make: Callable[[Path], None]
    meets: str
    says: str
    mend: str


def _write(path: str, data: bytes) -> Callable[[Path], None]:
    return lambda root: (root / path).write_bytes(data) and None


def _remove(path: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


def _cut(path: str) -> Callable[[Path], None]:
    """Keep the first half of a file."""
    return lambda root: os.truncate(root / path, (root / path).stat().st_size // 2)


def _cut_at_a_line(root: Path) -> None:
    """dvc.lock ends inside an entry, at the end of a line: YAML, and no record."""
    lines = (root / "dvc.lock").read_text(encoding="utf-8").splitlines(keepends=True)
    paths = [number for number, line in enumerate(lines) if line.strip().startswith("- path:")]
    (root / "dvc.lock").write_text("".join(lines[: paths[len(paths) // 2] + 1]), encoding="utf-8")


def _merge(root: Path) -> None:
    """Two people ran, and Git could not merge what DVC recorded."""
    text = (root / "dvc.lock").read_text(encoding="utf-8")
    (root / "dvc.lock").write_text(f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> theirs\n", encoding="utf-8")


def _damage_cache(root: Path) -> None:
    """The cached object of the weights loses its end, as a full disk leaves it; the result itself is gone."""
    cached = object_path(cache_folder(root), md5_file(root / WEIGHTS))
    cached.chmod(0o644)
    os.truncate(cached, 1000)
    cached.chmod(0o444)
    (root / WEIGHTS).unlink()


def _damage_cache_and_restore(root: Path) -> None:
    """DVC believes the object's name: the damage is a result now, and dvc.lock says all is well."""
    _damage_cache(root)
    run(root, *DVC.split(), "--quiet")
    assert (root / WEIGHTS).stat().st_size == 1000


def _foreign_lock(root: Path) -> None:
    """A killed run's entry in DVC's list, by a process number that another process has now."""
    entry = {"pid": os.getpid(), "cmd": "dvc repro"}
    (root / RWLOCK).write_text(json.dumps({"write": {str(root / "results/report/index.html"): entry}}))
    forget(root, "report")


def _lock_snakemake(root: Path) -> None:
    """As kill -9 leaves it."""
    (root / ".snakemake/locks").mkdir(exist_ok=True)
    (root / ".snakemake/locks/0.output.lock").write_text("results/report/index.html\n")
    forget(root, "report")


def forget(root: Path, stage: str) -> None:
    """As if `stage` had never run: no outputs, nothing in DVC's cache, no checkpoints."""
    cache = cache_folder(root)
    for path in read_pipeline(root)[stage].outs:
        if (root / path).is_file():
            object_path(cache, md5_file(root / path)).unlink(missing_ok=True)
            (root / path).unlink()
    for entry in (root / ".dvc/cache/runs").glob("??/*/*"):
        if f"rtdmd {stage}\n" in entry.read_text():
            entry.unlink()
    for folder in (root / ".rtdmd/runs").glob(f"{stage}-*"):
        shutil.rmtree(folder)


def each(name: str, make: Callable[[Path], None], says: dict[str, str], mend: str) -> list[Fault]:
    """The fault met by every engine in `says` (engine: what it answers), mended by a command and the engine again."""
    return [Fault(name, make, engine, answer, f"{mend} && {engine}") for engine, answer in says.items()]


GIT_PARAMS, GIT_DATA, RECOVER = "git checkout params.yaml", "git checkout data/world", "rtdmd recover"
FAULTS = [
    *each("teacher missing", _remove(TEACHER), {DVC: "inputs/teacher", SNAKEMAKE: TEACHER}, GIT_DATA),
    Fault(
        "teacher truncated",
        _cut(f"{TEACHER}/{BASE}"),
        "rtdmd train_acdmd",
        f"rtdmd: model.teacher: {TEACHER}",
        f"{GIT_DATA} && {DVC}",
    ),
    *each(
        "params.yaml is no YAML",
        _write("params.yaml", b"run: ]\n"),
        {SNAKEMAKE: "params.yaml:1: not YAML", DVC: "'params.yaml'.*YAML"},
        GIT_PARAMS,
    ),
    *each(
        "params.yaml is no text",
        _write("params.yaml", b"run: \xff\n"),
        {SNAKEMAKE: "params.yaml:1: not UTF-8", DVC: "'params.yaml'"},
        GIT_PARAMS,
    ),
    *each(
        "params.yaml is missing",
        _remove("params.yaml"),
        {SNAKEMAKE: "params.yaml: no such file", DVC: "params.yaml"},
        GIT_PARAMS,
    ),
    Fault("result truncated", _cut("results/prepare_prompts/train.jsonl"), "", "", DVC),
    Fault("result truncated", _cut("results/prepare_prompts/train.jsonl"), "", "", SNAKEMAKE),
    *each("cached result truncated", _damage_cache, {SNAKEMAKE: "is damaged.*rtdmd recover"}, RECOVER),
    Fault("cached result truncated", _damage_cache, RECOVER, "damaged; removed", DVC),
    Fault(
        "cached result truncated, then restored",
        _damage_cache_and_restore,
        "rtdmd evaluate",
        "gave it damaged.*rtdmd recover",
        f"{RECOVER} && {DVC}",
    ),
    *each("dvc.lock cut off", _write("dvc.lock", b""), {SNAKEMAKE: "dvc.lock", DVC: "dvc.lock"}, RECOVER),
    *each("dvc.lock cut at a line's end", _cut_at_a_line, {SNAKEMAKE: "has no hash.*rtdmd recover"}, RECOVER),
    *each(
        "dvc.lock with the marks of a merge",
        _merge,
        {SNAKEMAKE: "marks of a merge.*rtdmd recover", DVC: "dvc.lock"},
        RECOVER,
    ),
    *each(
        "dvc.yaml is no YAML",
        _write("dvc.yaml", b"stages: [\n"),
        {SNAKEMAKE: "dvc.yaml.*git checkout", DVC: "dvc.yaml"},
        "git checkout dvc.yaml",
    ),
    *each(
        ".dvc/config cannot be read",
        _write(".dvc/config", b"[core\n"),
        {SNAKEMAKE: ".dvc/config.*git checkout", DVC: "config file error"},
        "git checkout .dvc/config",
    ),
    *each("rwlock cut off", _write(RWLOCK, b'{"write'), {DVC: "(?i)rwlock"}, RECOVER),
    *each("rwlock names another process", _foreign_lock, {DVC: "busy"}, RECOVER),
    *each(
        "lock of a killed Snakemake", _lock_snakemake, {SNAKEMAKE: "cannot be locked.*--unlock"}, "snakemake --unlock"
    ),
]


def shell(root: Path, command: str) -> tuple[int, str]:
    """Exit code of a line, and what it said."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=root, env=environment(root), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def trial(fault: Fault, root: Path, expected: dict[str, str]) -> str:
    """Make the fault in `root`, meet it, mend it; what is wrong with that, or nothing."""
    fault.make(root)
    if fault.meets:
        code, said = shell(root, fault.meets)
        if not re.search(fault.says, said, re.DOTALL):
            return f"`{fault.meets}` ended with {code} and said: {said[-1500:]}"
        if code == 0 and fault.meets != RECOVER:
            return f"`{fault.meets}` ended well"
    code, said = shell(root, fault.mend)
    if code:
        return f"`{fault.mend}` ended with {code} and said: {said[-1500:]}"
    found = hashes(root)
    different = [path for path in expected if found[path] != expected[path]]
    return f"other bytes: {', '.join(different)}" if different else ""


@contextmanager
def small_disk(root: Path, folder: Path, megabytes: float) -> Iterator[Path]:
    """`root` copied to a file system of its own in memory, on which so much is free. PermissionError for who may not
    mount."""
    if os.geteuid() != 0:
        raise PermissionError("mounting a small disk needs root")
    folder.mkdir()
    used = sum(path.lstat().st_size + 4096 for path in root.rglob("*"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * used}", "tmpfs", str(folder)], check=True)
    try:
        copy(root, folder / "checkout")
        ballast = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - int(megabytes * 2**20)
        (folder / "ballast").write_bytes(b"\0" * ballast)
        yield folder / "checkout"
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _copied(fault: Fault, root: Path, folder: Path, expected: dict[str, str]) -> str:
    return trial(fault, copy(root, folder), expected)


def full_disk(stage: str, engine: str, root: Path, folder: Path, expected: dict[str, str]) -> str:
    """A disk that is full in the middle of `stage`'s outputs; then there is space, and the same command again."""
    size = sum((root / path).stat().st_size for path in read_pipeline(root)[stage].outs) / 2**20
    with small_disk(root, folder, size / 2) as disk:
        forget(disk, stage)

        def space(_: Path) -> None:
            ballast = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize - int(size / 2 * 2**20)
            with (folder / "ballast").open("ab") as file:
                file.write(b"\0" * max(0, ballast))

        mend = f"rm {folder}/ballast; {RECOVER} && {engine}"
        fault = Fault("disk full", space, engine, "No space left on device|make room", mend)
        return trial(fault, disk, expected)


def two_at_once(first: str, second: str, root: Path, folder: Path, expected: dict[str, str]) -> str:
    """`second` starts while a stage of `first` is at work (held there): it is refused, and `first` ends as ever."""
    copy(root, folder)
    forget(folder, "report")
    held = None
    quiet = subprocess.DEVNULL
    with subprocess.Popen(first.split(), cwd=folder, env=environment(folder), stdout=quiet, stderr=quiet) as running:
        while held is None and running.poll() is None:
            held = next((one for one in orphans(folder) if is_stage(one)), None)
        assert held is not None, f"`{first}` ended with {running.returncode}"
        held.suspend()
        code, said = shell(folder, second)
        held.resume()
        if running.wait():
            return f"`{first}` ended with {running.returncode}"
    if code == 0 or not re.search("busy|already running|cannot be locked", said):
        return f"`{second}` ended with {code} and said: {said[-1500:]}"
    return "" if hashes(folder) == expected else "other bytes"


def main() -> int:
    """Make every fault; see the module's text."""
    parser = argparse.ArgumentParser(description="the table of faults")
    parser.add_argument("--only", default="", help="pattern: only rows that match it, as `disk full.*dvc`")
    parser.add_argument("--finished", type=Path, help="a finished checkout to copy (default: make one)")
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = options.finished or finished(folder / "finished")
        expected = hashes(root)
        trials = [(fault.name, fault.meets or fault.mend, partial(_copied, fault)) for fault in FAULTS]
        for first, second in itertools.product((DVC, SNAKEMAKE), repeat=2):
            trials.append((f"two at once, after `{first}`", second, partial(two_at_once, first, second)))
        for stage in read_pipeline(root):
            for engine in (DVC, SNAKEMAKE):
                trials.append((f"disk full in {stage}", engine, partial(full_disk, stage, engine)))
        for number, (title, command, make) in enumerate(trials):
            if re.search(options.only, f"{title} | {command}"):
                fault = make(root, folder / str(number), expected)
                print(f"{title} | {command} | {fault or 'said so; mended; bytes equal'}", flush=True)
                wrong += bool(fault)
                shutil.rmtree(folder / str(number))
    return 1 if wrong else 0


def finished(root: Path) -> Path:
    """A checkout after a whole run, committed."""
    make_checkout(root, SMALL)
    run(root, *SNAKEMAKE.split(), "--quiet")
    commit(root, "results")
    return root


if __name__ == "__main__":
    sys.exit(main())
