"""How far apart two versions of an output are, where their bytes differ: what another machine type may change.

Another CPU capability, thread count or build of torch gives other last digits, which training makes larger. So no
bound on weights can be promised; what is promised is that the measured scores agree within their own intervals.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from rtdmd.common.files import load_tensors, read_json
from rtdmd.common.parsing import read_table

_LEVEL = 0.95  # of the intervals in metrics.json


@dataclass(frozen=True)
class Distance:
    """How far apart two files are, in words; `within` says whether the scores agree, None where there are none."""

    words: str
    within: bool | None = None


def distance(recorded: Path, here: Path) -> Distance:
    """The distance between two files of one kind, told by the suffix of `here`."""
    if here.name == "metrics.json":
        return _scores(read_json(recorded), read_json(here))
    measure = _MEASURES.get(here.suffix)
    return Distance(measure(recorded, here) if measure else "other text")


def _scores(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> Distance:
    """Scores of whole models, against the interval of a difference of two estimates.

    Estimates with 95 % half-widths a and b differ by less than sqrt(a² + b²) in 95 % of cases when they are
    independent (here they share prompts and noise, so by less). For all m scores at once the bound is wider by
    z(1 - 0.05 / 2m) / z(1 - 0.05 / 2) (Bonferroni).
    """
    pairs = dict(_estimates(recorded, here))
    if not pairs:
        return Distance("no scores to compare", within=False)
    normal = NormalDist()
    tail = (1 - _LEVEL) / 2
    wider = normal.inv_cdf(1 - tail / len(pairs)) / normal.inv_cdf(1 - tail)
    shares = {key: abs(a["mean"] - b["mean"]) / allowed(a, b, wider) for key, (a, b) in pairs.items()}
    worst = max(shares, key=lambda key: shares[key])
    a, b = pairs[worst]
    words = f"{worst}: {a['mean']:g} recorded, {b['mean']:g} here, allowed ± {allowed(a, b, wider):.2g}"
    return Distance(f"{words}; the furthest of {len(pairs)} scores", within=shares[worst] <= 1)


def allowed(a: Mapping[str, float], b: Mapping[str, float], wider: float = 1.0) -> float:
    """Largest difference of two means that their noise explains: their half-widths' root sum of squares, and half of
    the last of the six digits that metrics.json has."""
    return wider * math.hypot(a["ci95"], b["ci95"]) + 1e-6


def _estimates(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(suite model score, (recorded, here)) for each score of a whole model with an interval in both."""
    for suite, models in recorded.get("suites", {}).items():
        for model, section in models.items():
            if not isinstance(section, dict):
                continue  # a size of the suite
            for name, value in section.items():
                other = here.get("suites", {}).get(suite, {}).get(model, {}).get(name)
                if _is_estimate(value) and _is_estimate(other):
                    yield f"{suite} {model} {name}", (value, other)


def _is_estimate(value: Any) -> bool:
    return isinstance(value, dict) and value.get("ci95") is not None and "mean" in value


def _tensors(recorded: Path, here: Path) -> str:
    """Largest difference of an entry, and the norm of the difference over that of the record."""
    (was, _) = load_tensors(recorded)
    (now, _) = load_tensors(here)
    if {k: v.shape for k, v in was.items()} != {k: v.shape for k, v in now.items()}:
        return "other tensors"
    gaps = {key: was[key].double() - now[key].double() for key in was}
    largest = max((gap.abs().max().item() for gap in gaps.values() if gap.numel()), default=0.0)
    norm = math.sqrt(sum(gap.square().sum().item() for gap in gaps.values()))
    size = math.sqrt(sum(value.double().square().sum().item() for value in was.values()))
    relative = f"relative norm {norm / size:.1e}" if size else f"norm {norm:.1e}, and the record's is 0"
    return f"max difference {largest:.1e}, {relative}"


def _pictures(recorded: Path, here: Path) -> str:
    """Largest and mean difference of a pixel."""
    return _pixels({recorded.suffix: recorded.read_bytes()}, {recorded.suffix: here.read_bytes()})


def _archives(recorded: Path, here: Path) -> str:
    """The same over all pictures of two zip archives."""
    return _pixels(_members(recorded), _members(here))


def _members(path: Path) -> dict[str, bytes]:
    """The files in a zip archive by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _pixels(recorded: Mapping[str, bytes], here: Mapping[str, bytes]) -> str:
    import numpy as np
    from PIL import Image

    if recorded.keys() != here.keys():
        return "other pictures"
    gaps = []
    for name in recorded:
        was, now = (Image.open(io.BytesIO(data[name])).convert("RGB") for data in (recorded, here))
        if was.size != now.size:
            return "another size"
        gaps.append(np.abs(np.asarray(was, dtype=np.int16) - np.asarray(now, dtype=np.int16)).ravel())
    every = np.concatenate(gaps)
    return f"pixels: max difference {every.max()} of 255, mean {every.mean():.2g}"


def _json(recorded: Path, here: Path) -> str:
    return _numbers(dict(_leaves(read_json(recorded))), dict(_leaves(read_json(here))))


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested JSON with its dotted key."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


def _table(recorded: Path, here: Path) -> str:
    return _numbers(_cells(recorded), _cells(here))


def _cells(path: Path) -> dict[str, Any]:
    """Every field of a CSV file, numbers as such, by row and column."""
    rows = read_table(path, "the stage that makes it writes it anew")[1]
    return {f"row {i} {name}": _number(text) for i, row in enumerate(rows) for name, text in row.items()}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _numbers(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The largest difference of a number, and how many other values differ."""
    shared = [key for key in was if key in now]
    numeric = [key for key in shared if isinstance(was[key], int | float) and isinstance(now[key], int | float)]
    others = len(was.keys() ^ now.keys()) + sum(was[key] != now[key] for key in shared if key not in set(numeric))
    gaps = {key: abs(was[key] - now[key]) for key in numeric}
    worst = max(gaps, key=lambda key: gaps[key], default="")
    words = [f"max difference {gaps[worst]:.1e} ({worst})"] if worst and gaps[worst] else []
    return ", ".join(words + ([f"{others} other values differ"] if others else [])) or "same values, other text"


_MEASURES: dict[str, Callable[[Path, Path], str]] = {
    ".safetensors": _tensors,
    ".png": _pictures,
    ".zip": _archives,
    ".json": _json,
    ".csv": _table,
}
