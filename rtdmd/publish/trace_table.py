"""A lineage to read: from the result back to its first causes, with a mark at whatever differs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rtdmd.common.escape import printable
from rtdmd.pipeline.lineage import Difference, Step, short
from rtdmd.publish.trace import FOLDER, VERSIONS, Traced

SAME = "="
DIFFERENT = "≠"
WIDTH = 50


def table(traced: Traced, found: Sequence[Difference]) -> str:
    """The text that `rtdmd trace` prints; ``found`` is what ``traced.compare`` gave. Names and notes may be anybody's:
    control characters are printed as Python writes them."""
    makers = {path: step.name for step in traced.steps for path in step.outputs}
    files = {one.what: one.here for one in found}
    lines = [traced.title, *(f"  {note}" for note in traced.notes), *_other_rows(FOLDER, found)]
    for step in reversed(traced.steps):
        lines += ["", step.name + (f": {step.command}" if step.command else "")]
        lines += _inputs(step, makers, files)
        lines += _settings(step, found)
        lines += [_row("out", path, digest, files) for path, digest in step.outputs.items()]
    return "\n".join(map(printable, [*lines, *_other_rows(VERSIONS, found)]))


def _inputs(step: Step, makers: Mapping[str, str], files: Mapping[str, str]) -> list[str]:
    """A row for each input; code that is as recorded takes one row together."""
    rows = []
    code = []
    for path, digest in step.inputs.items():
        if path.startswith("rtdmd/") and _same(path, digest, files):
            code.append(path.removeprefix("rtdmd/"))
        else:
            rows.append(_row("in", path, digest, files, f"  from {makers[path]}" if path in makers else ""))
    return rows + ([f"  code {SAME} {', '.join(code)}"] if code else [])


def _settings(step: Step, found: Sequence[Difference]) -> list[str]:
    """What differs in the stage's parameters or in its entry of dvc.yaml, or one row that says that nothing does."""
    files = {*step.inputs, *step.outputs}
    rows = [
        f"  set  {DIFFERENT} {one.what.ljust(WIDTH)} {one.recorded}, here {one.here}"
        for one in found
        if one.stage == step.name and one.what not in files
    ]
    return rows or ([f"  set  {SAME} {', '.join(step.params)}"] if step.params else [])


def _other_rows(kind: str, found: Sequence[Difference]) -> list[str]:
    """Damage to the folder, or package versions."""
    rows = [
        f"  {DIFFERENT} {one.what.ljust(WIDTH)} {one.recorded}, here {one.here}" for one in found if one.stage == kind
    ]
    return ["", kind, *rows] if rows else []


def _same(path: str, digest: str, files: Mapping[str, str]) -> bool:
    return path not in files or files[path] == short(digest)


def _row(kind: str, path: str, digest: str, files: Mapping[str, str], origin: str = "") -> str:
    same = _same(path, digest, files)
    mark, here = (SAME, "") if same else (DIFFERENT, f", here {files[path]}")
    return f"  {kind:4} {mark} {path.ljust(WIDTH)} {short(digest)}{here}{origin}"
