"""Which files of a model's folder are read, and whether they are whole.

A diffusers folder says it itself: `model_index.json` names the parts, and the index of a part's weights names the
shards. Other copies of the same weights (fp16 variants, single-file checkpoints, a second folder) are not read, so they
are neither downloaded nor hashed. Nothing here imports torch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from rtdmd.common.digests import cached_digest
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, sha256_bytes
from rtdmd.common.parsing import first_line, read_bytes

INDEX = "model_index.json"
TEXTS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configurations, tokenizers and templates."""
SINGLE = "model.safetensors"
OLD = "pytorch_model.bin"
WORLD_FOLDER = "data/world"
TOKENIZER = "tokenizer.json"
_TOKENIZERS = frozenset({TOKENIZER, "vocab.json", "spiece.model"})
_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
_HEADER_LIMIT = 100_000_000  # bytes: safetensors' own limit
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16}
_BITS |= {"BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}


def bring_back(path: Path) -> str:
    """What really brings a damaged or missing file of a model back, for the end of a message."""
    if f"/{WORLD_FOLDER}/" in f"/{path.as_posix()}/":
        return f"`git checkout {WORLD_FOLDER}` brings it back"
    hub = (folder for folder in path.parents if folder.name.startswith("models--") and (folder / "snapshots").is_dir())
    cached = next(hub, None)
    if cached is None:
        return "it lies outside this repository: copy or download it there again, from where the folder came"
    if path.is_symlink() and path.exists():  # a file of the Hub's cache is a link to what was downloaded
        return f"`rm {shlex.quote(str(path.resolve()))}`, then the same command downloads it again"
    if path.is_dir():  # none of its files is missing, so nothing would be downloaded
        return f"`rm -r {shlex.quote(str(cached))}`, then the same command downloads it again"
    return "the same command downloads it again when the Hub can be reached"


def absent(folder: Path) -> str:
    """What to do where a model's folder lacks a file, for the end of a message: of the Hub's, all that is read of a
    repository was downloaded, so the repository itself has none at this commit."""
    if any(one.name.startswith("models--") for one in folder.parents):
        return "its repository has none at this commit: name another commit, or another repository"
    return "copy or download it there, from where the folder came, or name a folder that has it"


def no_folder(folder: Path) -> str:
    """That there is no such folder of a model, and what to do about it, for the end of a message."""
    world = f"; {bring_back(folder)}" if f"/{WORLD_FOLDER}/" in f"/{folder.as_posix()}/" else ""
    return f"there is no folder {folder}; correct the path, or name a Hub id and its revision{world}"


def read_config(path: Path, key: str) -> dict[str, Any]:
    """A JSON object of a model's folder; UserError, which begins with the setting ``key``, where it is none."""
    try:
        return read_json(path, bring_back(path))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def model_index(folder: Path, key: str = "model.teacher") -> dict[str, Any]:
    """The pipeline's index: class name and, for each part, [library, class], [null, null] where it has no such part."""
    return read_config(folder / INDEX, key)


def parts_of(index: dict[str, Any], folder: Path, key: str = "model.teacher") -> dict[str, tuple[str, str]]:
    """(library, class) by part, of the parts that the index has. UserError where an entry is another's code: only
    diffusers and transformers are asked for classes."""
    parts = {}
    for part, entry in index.items():
        if not isinstance(entry, list):
            continue
        if entry == [None, None]:
            continue
        if len(entry) != 2 or entry[0] not in _STEMS or not isinstance(entry[1], str) or not part.isidentifier():
            raise UserError(
                f"{key}: {folder / INDEX} has {part}: {json.dumps(entry)}; allowed: a class of diffusers or of"
                " transformers, nothing else is imported"
            )
        parts[part] = (entry[0], entry[1])
    return parts


def teacher_files(folder: Path, key: str = "model.teacher", only: Iterable[str] | None = None) -> list[str]:
    """Names of the files of a diffusers folder that its index and its weights' indexes name, in a fixed order.

    only: these parts alone. UserError where one of them is not there.
    """
    parts = parts_of(model_index(folder, key), folder, key)
    wanted = parts if only is None else {part: parts[part] for part in only if part in parts}
    names = [INDEX]
    for part, (library, kind) in wanted.items():
        place = folder / part
        if not place.is_dir():
            raise UserError(f"{key}: {place}, which {folder / INDEX} names, is missing; {bring_back(place)}")
        texts = plain_texts(place)
        for name in texts:
            if not (place / name).exists():  # a link whose file was removed, as the message on a damaged one advises
                raise UserError(f"{key}: {place / name} is missing; {bring_back(place / name)}")
        if "Tokenizer" in kind and not _TOKENIZERS.intersection(texts):
            path = place / ("vocab.json" if "merges.txt" in texts else "tokenizer.json")
            raise UserError(f"{key}: {path} is missing, and so are its other forms; {bring_back(path)}")
        if "Tokenizer" in kind and "merges.txt" not in texts and _TOKENIZERS.intersection(texts) == {"vocab.json"}:
            path = place / "merges.txt"  # the other half of an older form
            raise UserError(f"{key}: {path} is missing; {bring_back(path)}")
        names += [f"{part}/{name}" for name in texts]
        if _has_weights(kind):
            names += [f"{part}/{name}" for name in weight_files(place, library, key)]
    return sorted(names, key=PurePosixPath)


def _has_weights(kind: str) -> bool:
    """Of a part by its class: all but schedulers, tokenizers and processors have weights."""
    return not any(word in kind for word in ("Scheduler", "Tokenizer", "Processor", "FeatureExtractor"))


def plain_texts(folder: Path) -> list[str]:
    """Names of the configurations, tokenizers and templates of a part's folder, without the indexes of variants; links
    whose file is gone are among them."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() or path.is_symlink())
    texts = [name for name in names if any(fnmatchcase(name, pattern) for pattern in TEXTS)]
    plain = {f"{stem}.safetensors.index.json" for stem in _STEMS.values()}
    return [name for name in texts if ".index." not in name or name in plain]


def weight_files(folder: Path, library: str, key: str) -> list[str]:
    """Names of the safetensors files that the ``library`` reads of a part's folder: one, or the shards of its index.

    UserError where there are none, where the index names a file that is not there, or where the configuration would
    have something else read.
    """
    stem = _STEMS[library]
    single = f"{stem}.safetensors"
    index = f"{single}.index.json"
    if (folder / "adapter_config.json").exists():
        path = folder / "adapter_config.json"
        raise UserError(f"{key}: {path} would load an adapter of another model; merge it, or remove that file")
    if "transformers_weights" in read_config(folder / "config.json", key):
        raise UserError(
            f"{key}: {folder / 'config.json'}: transformers_weights is not allowed; name the file {single} and remove"
            " the entry"
        )
    first = index if library == "diffusers" else single  # each library's own order where both are there
    if first == single and (folder / single).is_file():
        return [single]
    if (folder / index).is_file():
        return shards(folder / index, key)
    if (folder / single).is_file():
        return [single]
    raise UserError(f"{key}: {folder / single} is missing; {bring_back(folder / single)}")


def transformers_weights(folder: Path, key: str) -> list[str]:
    """Names of a transformers model's weights: the single file, the shards of its index, or one file of PyTorch's."""
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if (folder / f"{SINGLE}.index.json").is_file():
        return shards(folder / f"{SINGLE}.index.json", key)
    return [OLD] if (folder / OLD).is_file() else []


def single_weights(library: str, kind: str) -> list[str]:
    """The name of the file that holds all weights of a part with this class, where it has weights."""
    return [f"{_STEMS[library]}.safetensors"] if _has_weights(kind) else []


def shards(index: Path, key: str, there: bool = True) -> list[str]:
    """Names of the files that an index of weights names; UserError where one is no file beside the index. there: False
    lets them be missing yet."""
    table = read_config(index, key).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{key}: {index} has no weight_map; {bring_back(index)}")
    names = sorted({str(name) for name in table.values()})
    for name in names:
        if PurePosixPath(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{key}: {index} names {name!r}; allowed: a .safetensors file of its folder")
        if there and not (index.parent / name).is_file():
            raise UserError(f"{key}: {index.parent / name} is missing; {bring_back(index.parent / name)}")
    return names


def check_files(folder: Path, names: Iterable[str], key: str) -> None:
    """UserError that names the first file whose JSON or whose safetensors header is damaged, or that is cut short.

    Of weights the header alone is read, so that a folder of any size takes a moment.
    """
    for name in names:
        path = folder / name
        if path.name == TOKENIZER:
            check_tokenizer(path, key)
        elif path.suffix == ".json":
            _check_json(path, key)
        elif path.suffix == ".safetensors":
            tensor_headers(path, key)


def check_tokenizer(path: Path, key: str) -> None:
    """UserError where a tokenizer.json is no tokenizer's: the library that reads it raises a bare Exception there."""
    if path.name != TOKENIZER:  # an older form
        return
    model = read_config(path, key).get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise UserError(f"{key}: {path} makes no tokenizer (it has no vocab in model); {bring_back(path)}")


def _check_json(path: Path, key: str) -> None:
    """UserError where a file is no JSON. Beside what a model reads lie lists too (sentence-transformers' modules.json)
    and Python's NaN (a trainer's log)."""
    try:
        json.loads(read_bytes(path, bring_back(path)).decode("utf-8"))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: {path}: not JSON ({first_line(error)}); {bring_back(path)}") from error


def tensor_headers(path: Path, key: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(kind of number, shape) by tensor name, from the header of a safetensors file; UserError where it is cut."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(_HEADER_LIMIT, size - 8):
                raise ValueError(f"no safetensors header in {size} bytes")
            header = json.loads(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 0
        for name, entry in entries.items():
            begin, end_of_tensor = entry["data_offsets"]
            bits = _BITS[entry["dtype"]]
            for side in entry["shape"]:
                bits *= side
            if bits != 8 * (end_of_tensor - begin):
                raise ValueError(f"{name} does not have the bytes of its shape")
            end = max(end, end_of_tensor)
        if end != size - 8 - length:
            raise ValueError(f"{size} bytes, but its header describes {end + 8 + length}")
        return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
    except FileNotFoundError as error:
        raise UserError(f"{key}: {path} is missing; {bring_back(path)}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{key}: {path} is damaged ({first_line(error)}); {bring_back(path)}") from error


def files_hash(
    folder: Path, names: Iterable[str], root: Path, known: Callable[[Path], str | None] = lambda path: None
) -> str:
    """The hash that `sha256_tree` gives a folder with these files alone. known: the digest of a file that need not be
    read for it, None where it has to."""
    lines = []
    for name in sorted(names, key=PurePosixPath):
        digest = known(folder / name) or cached_digest(folder / name, root)
        lines.append(f"{digest}  {name}\n")
    return sha256_bytes("".join(lines).encode())
