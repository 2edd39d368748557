"""The paper's two ablation tables (arXiv 2605.26108, SD3.5-M on DrawBench) beside ours, and where the orders agree."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from rtdmd.study.gather import Row, difference

GAMMA = {
    "admd": (0.2753, 22.01, 0.3188),
    "acdmd-0.1": (0.2846, 23.21, 0.3362),
    "acdmd": (0.2843, 23.57, 0.3456),
    "acdmd-0.005": (0.2837, 22.85, 0.3324),
    "acdmd-0.001": (0.2831, 22.24, 0.3294),
}
"""γ -> CLIPScore, PickScore, HPSv2."""

STAGE_TWO = {
    "base": (0.2822, 22.51, 0.2942),
    "grpo": (0.2759, 23.31, 0.3268),
    "subgrpo-1": (0.2798, 23.33, 0.3332),
    "subgrpo-1-last": (0.2802, 23.42, 0.3318),
    "subgrpo-2": (0.2839, 23.45, 0.3459),
    "subgrpo-2-last": (0.2843, 23.57, 0.3456),
}
"""Stage two -> CLIPScore, PickScore, HPSv2; base: none."""

PICKSCORE = 1  # the column by which the paper's order is read


def order_agreement(rows: Mapping[str, Row], paper: Mapping[str, tuple[float, ...]]) -> dict[str, list[str]]:
    """Pairs of methods, as "a > b" in the paper's order by PickScore, sorted by what our headline figure says of them:
    agree or disagree where its paired difference is beyond the interval over seeds, else undecided."""
    verdicts: dict[str, list[str]] = {"agree": [], "disagree": [], "undecided": []}
    for one, two in combinations([name for name in paper if name in rows], 2):
        better, worse = sorted((one, two), key=lambda name: -paper[name][PICKSCORE])
        found = difference(rows[better].runs, rows[worse].runs)
        if found is None:
            continue
        verdict = "undecided" if not found.sure else "agree" if found.mean > 0 else "disagree"
        verdicts[verdict].append(f"{better} > {worse}")
    return verdicts
