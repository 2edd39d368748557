"""The files of figures: one line per image (scores.csv), one line per suite, model and tag (per_tag.csv), and reading
them back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtdmd.common.errors import UserError
from rtdmd.common.parsing import first_line, read_table
from rtdmd.evaluate.intervals import Estimate, estimate
from rtdmd.evaluate.plan import Item

KEYS = ("suite", "model", "prompt_id", "index", "tag")


@dataclass(frozen=True)
class Scores:
    """Scores of one model's N images of a suite, in the order of its scores.csv."""

    prompts: tuple[int, ...]
    indices: tuple[int, ...]
    tags: tuple[str, ...]
    columns: dict[str, np.ndarray]  # score name -> (N,) float64

    def overall(self, name: str) -> Estimate:
        """Mean over the tags of one score."""
        return estimate(self.columns[name], self.prompts, self.tags)

    def per_tag(self, name: str) -> dict[str, Estimate]:
        """Mean of one score within each tag, in the order of first appearance."""
        tag = np.asarray(self.tags)
        rows = {t: np.flatnonzero(tag == t) for t in dict.fromkeys(self.tags)}
        return {
            t: estimate(self.columns[name][r], np.asarray(self.prompts)[r].tolist(), [t] * len(r))
            for t, r in rows.items()
        }


def scores_of(items: Sequence[Item], columns: Mapping[str, np.ndarray]) -> Scores:
    """Scores of planned images; `columns` maps each score to (N,) in the plan's order."""
    return Scores(
        prompts=tuple(item.prompt.id for item in items),
        indices=tuple(item.index for item in items),
        tags=tuple(item.tag for item in items),
        columns={name: np.asarray(values, dtype=np.float64) for name, values in columns.items()},
    )


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV with Unix line ends; floats in 6 significant digits, None as an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_field(value) for value in row])
    return out.getvalue()


def _field(value: object) -> object:
    if value is None:
        return ""
    return format(value, ".6g") if isinstance(value, float) else value


Suites = Mapping[str, Mapping[str, Scores]]
"""Scores by suite and model."""


def score_columns(suites: Suites) -> list[str]:
    """The scores of all suites, each once, in the order in which they first occur."""
    return list(dict.fromkeys(name for models in suites.values() for s in models.values() for name in s.columns))


def scores_csv(suites: Suites) -> str:
    """One line per image: suite, model, prompt_id, index, tag, then every score; empty where the suite has not that
    score."""
    names = score_columns(suites)
    rows: list[list[object]] = []
    for suite, models in suites.items():
        for model, scores in models.items():
            images = zip(scores.prompts, scores.indices, scores.tags, strict=True)
            for i, (prompt, index, tag) in enumerate(images):
                values = [float(scores.columns[name][i]) if name in scores.columns else None for name in names]
                rows.append([suite, model, prompt, index, tag, *values])
    return csv_text([*KEYS, *names], rows)


def per_tag_csv(suites: Suites) -> str:
    """One line per suite, model and tag: images, then mean and ci95 of every score (the interval is over noise; see
    intervals.py)."""
    names = score_columns(suites)
    header = ["suite", "model", "tag", "images", *(f"{name}{suffix}" for name in names for suffix in ("", "_ci95"))]
    rows: list[list[object]] = []
    for suite, models in suites.items():
        for model, scores in models.items():
            tables = {name: scores.per_tag(name) for name in scores.columns}
            for tag, first in next(iter(tables.values())).items():
                row: list[object] = [suite, model, tag, first.n]
                for name in names:
                    found = tables[name][tag] if name in tables else None
                    row += [found and found.mean, found and found.ci95]
                rows.append(row)
    return csv_text(header, rows)


def read_suites(path: Path, model: str) -> dict[str, Scores]:
    """One model's scores from a scores.csv, by suite. UserError naming the file when it, the model or a column is
    missing."""
    header, every = read_table(path, "`rtdmd evaluate` writes results/evaluate/scores.csv")
    if not set(KEYS) <= set(header):
        raise UserError(
            f"{path}: not a scores.csv of this version (its first line must name {', '.join(KEYS)} and the scores);"
            " `rtdmd evaluate` writes it anew"
        )
    rows: dict[str, list[dict[str, str]]] = {}
    for row in every:
        if row["model"] == model:
            rows.setdefault(row["suite"], []).append(row)
    if not rows:
        raise UserError(
            f"{path}: no model {model!r}; it holds {', '.join(dict.fromkeys(row['model'] for row in every))}"
        )
    names = [name for name in header if name not in KEYS]
    return {suite: _scores(path, own, names) for suite, own in rows.items()}


def read_scores(path: Path, model: str, suite: str) -> Scores:
    """One model's scores of one suite from a scores.csv. UserError as `read_suites`, and where it has not that
    suite."""
    found = read_suites(path, model)
    if suite not in found:
        raise UserError(f"{path}: no suite {suite!r} of {model}; it holds {', '.join(found)}")
    return found[suite]


def _scores(path: Path, rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> Scores:
    """The rows of one model and suite; scores that none of them has are another suite's."""
    own = [name for name in names if any(row[name] for row in rows)]
    columns: dict[str, np.ndarray] = {}
    try:
        for name in own:
            columns[name] = np.array([float(row[name]) for row in rows])
        return Scores(
            prompts=tuple(int(row["prompt_id"]) for row in rows),
            indices=tuple(int(row["index"]) for row in rows),
            tags=tuple(row["tag"] for row in rows),
            columns=columns,
        )
    except ValueError as error:
        message = f"a field is not a number ({first_line(error)})"
        raise UserError(f"{path}: {message}; `rtdmd evaluate` writes results/evaluate/scores.csv") from error
