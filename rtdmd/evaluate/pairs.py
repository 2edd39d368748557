"""Paired differences of two models over the same (prompt, image index): what their shared prompts and noise cancel, is
gone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rtdmd.common.errors import UserError
from rtdmd.evaluate.intervals import Estimate
from rtdmd.evaluate.tables import Scores


def paired_difference(first: Scores, second: Scores) -> Scores:
    """Scores whose columns are first - second on the images that both have, for the scores that both have.

    Raises UserError when the two were not judged on the same (prompt, index) pairs or share no score.
    """
    keys_a, keys_b = (list(zip(s.prompts, s.indices, s.tags, strict=True)) for s in (first, second))
    if set(keys_a) != set(keys_b) or len(set(keys_a)) != len(keys_a):
        shared = len(set(keys_a) & set(keys_b))
        raise UserError(
            f"the two were judged on different images ({len(keys_a)} and {len(keys_b)}, {shared} in common);"
            " evaluate both with the same prompts and images in evaluate.suites"
        )
    names = [name for name in first.columns if name in second.columns]
    if not names:
        raise UserError("the two share no score; evaluate both with the same evaluate.rewards")
    row_of = {key: row for row, key in enumerate(keys_b)}
    order = np.array([row_of[key] for key in keys_a])
    columns = {name: first.columns[name] - second.columns[name][order] for name in names}
    return Scores(first.prompts, first.indices, first.tags, columns)


def difference_table(difference: Scores, names: Sequence[str]) -> str:
    """Plain text: one block per score, overall and per tag, as difference, half-widths, and whether 0 is outside."""
    lines = [f"{'score':<18}{'tag':<16}{'images':>7}{'difference':>12}{'± noise':>10}{'± prompts':>11}  95 % interval"]
    for name in names:
        rows = {"all": difference.overall(name), **difference.per_tag(name)}
        lines += [
            f"{name:<18}{tag:<16}{row.n:>7}{row.mean:>+12.4f}{_width(row.ci95):>10}{_verdict(row):<0}"
            for tag, row in rows.items()
        ]
    return "\n".join(lines)


def _width(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _verdict(row: Estimate) -> str:
    """The wider half-width, and in words where zero lies."""
    text = f"{_width(row.ci95_prompts):>11}  "
    if row.ci95 is None:
        return text + "unknown"
    if abs(row.mean) <= row.ci95:
        return text + "holds 0"
    side = "above 0" if row.mean > 0 else "below 0"
    sure = row.ci95_prompts is not None and abs(row.mean) > row.ci95_prompts
    return text + (side if sure else f"{side} for these prompts")
