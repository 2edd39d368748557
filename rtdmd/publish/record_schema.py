"""The form of the records that a published folder, weights or a repository carry. They may come from anybody: each is
read up to a size, has one strict form with bounds, and what does not fit is one line. Keys that are not asked for here
may be there; nobody reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from rtdmd.common.errors import UserError
from rtdmd.common.escape import printable
from rtdmd.common.files import read_json
from rtdmd.pipeline.lineage import inside

MAX_BYTES = 4 * 2**20
"""Of a record: ours have some 50 kB."""
MAX_VALUES = 20_000
MAX_DEPTH = 20
MAX_STAGES = 50
MAX_FILES = 2000

Record = TypeVar("Record", bound="Foreign")
Text = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Name = Annotated[str, StringConstraints(pattern=r"^[\w.+-]{1,100}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def _inside(path: str) -> str:
    if not inside(path):
        raise ValueError("a path inside the folder is expected, as a/b.txt")
    return path


def _bounded(value: Any) -> Any:
    """Nested values, walked without recursion."""
    todo = [(value, 1)]
    seen = 0
    while todo:
        one, depth = todo.pop()
        seen += 1
        if seen > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_VALUES} values, or nested deeper than {MAX_DEPTH}")
        if isinstance(one, dict):
            todo += [(key, depth) for key in one]
            one = list(one.values())
        if isinstance(one, list):
            todo += [(inner, depth + 1) for inner in one]
        elif isinstance(one, str):
            one.encode()  # UnicodeEncodeError, a ValueError, for half a character
    return value


Settings = Annotated[dict[Text, Any], AfterValidator(_bounded)]
Inputs = Annotated[dict[Text, Hash], Field(max_length=MAX_FILES)]
Files = Annotated[dict[Annotated[Text, AfterValidator(_inside)], Hash], Field(max_length=MAX_FILES)]
Versions = Annotated[dict[Name, Text], Field(max_length=MAX_STAGES)]
Words = Annotated[list[Text], Field(max_length=MAX_FILES)]


ASK = "copy or download it again from whoever made it"
"""What to do about a record that is none."""


class Foreign(BaseModel):
    """A record of anybody's."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Provenance(Foreign):
    """`provenance.json`, and the header of weights (lineage_record.py makes it)."""

    settings: Settings
    settings_sha256: Hash | None = None
    inputs: dict[Name, Inputs] = Field(min_length=1, max_length=MAX_STAGES)  # stage -> path -> hash
    versions: dict[Name, Versions] | Versions  # by stage, or (records of 0.1) one list for all


class Resolved(Foreign):
    """`resolved.json` of a stage."""

    stage: Name
    params: Settings
    inputs: Inputs
    versions: Versions = {}


class Upload(Foreign):
    """`upload.json`: what `rtdmd upload` says of a publication."""

    tag: Text | None = None
    git_commit: Text | None = None
    changed_files: Words = []
    stale: Words = []
    files: Files = {}


class Gate(Foreign):
    """`gate.json`: what passed the stage's gate."""

    sha256: Files = {}


def checked(kind: type[Record], value: Any, name: str) -> Record:
    """A parsed record in its form; UserError that says where it differs."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        says = printable(f"{place}: {first['msg']}" if place else first["msg"])
        raise UserError(f"{printable(name)}: not a record of this package ({says}); {ASK}") from error


def read_record_file(kind: type[Record], path: Path, name: str = "") -> Record:
    """A record's file in its form. ``name`` is what errors call it."""
    called = name or str(path)
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{printable(called)}: not a record of this package (more than {MAX_BYTES} bytes); {ASK}")
    return checked(kind, read_json(path, "trace something else"), called)
