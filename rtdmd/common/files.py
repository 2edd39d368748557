"""Reading, hashing and writing files so that a reader never sees half of one.

Every writer writes to a temporary name beside the target, flushes it to disk and renames it. All formats are
deterministic: the same content gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from rtdmd.common.errors import NonFiniteError, UserError
from rtdmd.common.parsing import first_line, parse_json, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

Algorithm = Literal["sha256", "md5"]
_AGAIN = "make the file again"
_NO_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What zipfile raises where a damaged header sends it to a place, a method or a password that is not there."""
IGNORED = (
    *("__pycache__", "*.pyc", ".git", ".hg", ".dvc", ".snakemake*", ".rtdmd", ".venv", ".partial-*"),
    *(".#*", "#*#", "*~", ".*.sw[a-p]", ".*.un~", ".~lock.*", ".*.kate-swp", ".goutputstream-*"),
    *(".DS_Store", "._*", "Thumbs.db", "desktop.ini", ".directory", ".nfs*", ".fuse_hidden*"),
    *(".idea", ".vscode", ".ipynb_checkpoints", ".mypy_cache", ".ruff_cache", ".pytest_cache"),
)
"""Names of files and folders that say nothing about content, wherever they are inside a folder: what Python and the
engines drop, then editors, desktops and file systems, then tools. `.dvcignore` has the same (a test compares)."""


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def hash_of(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON (sorted keys), so that comments and order do not count."""
    return sha256_bytes(json_text(value).encode())


def file_digest(path: Path | str, algorithm: Algorithm) -> str:
    """Hex digest of a file's bytes, all of which are read."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    return file_digest(path, "sha256")


def md5_file(path: Path | str) -> str:
    """Hex MD5 of a file's bytes, DVC's name for it."""
    return file_digest(path, "md5")


def tree_files(directory: Path | str) -> Iterator[Path]:
    """Files under `directory` in a fixed order, without those that say nothing about content (`IGNORED`). The names
    above `directory` do not count."""
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file() and not any(map(_is_ignored, path.relative_to(directory).parts)):
            yield path


@cache
def _is_ignored(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in IGNORED)


def sha256_tree(path: Path | str, of_file: Callable[[Path], str] = sha256_file) -> str:
    """Hash of a file, or of a directory's file names and contents (times and modes do not count). of_file: how the
    SHA-256 of a file is had."""
    path = Path(path)
    if path.is_file():
        return of_file(path)
    lines = [f"{of_file(file)}  {file.relative_to(path).as_posix()}\n" for file in tree_files(path)]
    return sha256_bytes("".join(lines).encode())


def write_atomic(path: Path | str, data: bytes | str | Iterator[bytes | memoryview]) -> None:
    """Write `data` (text as UTF-8, or piece by piece) to `path`: all of it or nothing, and on disk when this
    returns."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            if isinstance(data, str):
                data = data.encode()
            file.writelines((data,) if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """The process's file mode mask (readable only by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fsync_path(path: Path | str) -> None:
    """Flush a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a folder, a file, or a link (never what it points at), where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def lock_file(path: Path) -> BinaryIO:
    """An empty file to lock, made where it is missing; what is there is neither followed elsewhere nor emptied.
    UserError where it cannot be had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise UserError(f"{path}: no file to lock ({error.strerror}); `rm -r {path}` removes it") from error
    file = os.fdopen(descriptor, "r+b", buffering=0)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise UserError(f"{path}: no file to lock (a pipe or a device); `rm -r {path}` removes it")
    return file


def json_text(value: Any) -> str:
    """JSON with sorted keys, two spaces and a trailing newline. NonFiniteError that names the first NaN or infinity."""
    _require_finite(value)
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _require_finite(value: Any, place: str = "") -> None:
    """NonFiniteError with the place of the first number that JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        raise NonFiniteError(f"{place or 'the value'} is {value}, which JSON cannot hold")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _require_finite(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _require_finite(inner, f"{place}[{number}]")


def write_json(path: Path | str, value: Any) -> None:
    """Write `json_text(value)` atomically. NonFiniteError, which names the file, for a NaN or infinity in it."""
    try:
        text = json_text(value)
    except NonFiniteError as error:
        raise NonFiniteError(f"{Path(path).name}: {error}; the file was not written") from error
    write_atomic(path, text)


def read_json(path: Path | str, remedy: str = _AGAIN) -> dict[str, Any]:
    """The JSON object in a file; UserError that names the file and the ``remedy`` where there is none."""
    return parse_json(read_bytes(Path(path), remedy), str(path), remedy)


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, keys in the order given. NonFiniteError as for `write_json`."""
    rows = list(rows)
    for number, row in enumerate(rows, start=1):
        try:
            _require_finite(row)
        except NonFiniteError as error:
            raise NonFiniteError(f"{Path(path).name}:{number}: {error}; the file was not written") from error
    lines = [json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    write_atomic(path, "".join(lines))


def read_jsonl(path: Path | str) -> list[dict[str, Any]]:
    """Read one JSON object a line (empty lines skipped); a damaged line is a UserError that names file and line."""
    rows = []
    for number, line in enumerate(read_bytes(Path(path), _AGAIN).split(b"\n"), start=1):
        if line.strip():
            rows.append(parse_json(line, f"{path}:{number}", _AGAIN))
    return rows


def save_tensors(tensors: Mapping[str, Tensor], path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically; the same tensors and metadata give the same bytes.

    Tensors are written as safetensors orders them, on the CPU and contiguous, one at a time; the header's metadata is
    sorted.
    """
    from rtdmd.common.lazy_tensors import file_parts

    write_atomic(path, file_parts(tensors, metadata))


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and metadata of a safetensors file; a damaged file is a UserError that names it."""
    from rtdmd.common.lazy_tensors import whole_tensors

    with whole_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def check_archive(path: Path) -> None:
    """UserError unless ``path`` is a zip archive, as torch.save writes, in which every byte is as it was written.

    PyTorch does not look at the checksums that it writes: numbers of a damaged file would be taken as they are.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except _NO_ARCHIVE as error:
        raise UserError(
            f"{path}: not a complete file of torch.save ({first_line(error)}); copy or download it again"
        ) from error
    if damaged is not None:
        raise UserError(f"{path}: {damaged} in it is damaged (its checksum differs); copy or download the file again")
