"""What the models and figures are called where people read them, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rtdmd.config.rewards import LABELS as REWARD_LABELS

STUDENT = "train_rtdmd"  # the published one
TEACHER_DISTRIBUTION = "teacher_law"  # images of the teacher with noise of their own, in parses.csv
LABELS = {
    "teacher": "Teacher",
    "teacher_few_step": "Teacher, few steps",
    "student_base": "Student's base, as released",
    "imported": "Imported checkpoint",
    "train_acdmd": "Stage one (AC-DMD)",
    "train_rtdmd": "Stage two (RTDMD)",
    "reference": "Real images",
}

PAIRS = (
    ("train_rtdmd", "train_acdmd"),
    ("train_rtdmd", "teacher"),
    ("train_rtdmd", "student_base"),
    ("train_acdmd", "teacher"),
    ("train_acdmd", "teacher_few_step"),
    ("train_acdmd", "student_base"),
    ("train_rtdmd", "imported"),
    ("imported", "teacher"),
    ("imported", "student_base"),
)  # differences that carry a claim: first - second

SCORES = {
    "strict": "Strict",
    "lenient": "Lenient",
    "soft": "Soft",
    **REWARD_LABELS,
}


TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # GenEval's order


def suites_of(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The suites of metrics.json by name, in the order of evaluate.suites; {} where nothing was evaluated."""
    return {name: metrics["suites"][name] for name in metrics.get("order", ())}


def first_suite(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """The suite that evaluate.suites has first, whose first score heads pages; {} where nothing was evaluated."""
    return next(iter(suites_of(metrics).values()), {})


def level_name(eta: float) -> str:
    """The published student at another η than the trained one, as scores.csv and `rtdmd compare` call it."""
    return f"{STUDENT}_eta_{eta:g}"


def in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Known names in the given order, then the others by name (JSON files are sorted by key)."""
    found = list(names)
    return [name for name in order if name in found] + sorted(name for name in found if name not in order)


def score_label(name: str) -> str:
    """A score's name in a table's head."""
    return SCORES.get(name, name)


def score_title(name: str) -> str:
    """A score's name in a sentence or a heading: "Strict score", "CLIP score"."""
    label = score_label(name)
    return label if label.endswith("score") else f"{label} score"
