"""`rtdmd verify --study FOLDER`: the method's choices side by side on the oracle, as study.csv and a picture.

Stage one: mean energy distance to the teacher's distribution. Stage two, from a perfect stage one: gained reward and
total variance over those of the fixed point, energy distance to it. Seconds are processor seconds, so that a busy
machine does not change who is cheaper. What was decided by these figures is in docs/verification.md.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rtdmd.common.files import write_atomic
from rtdmd.oracle import reinforcement, training
from rtdmd.oracle.identities import LINEAR
from rtdmd.oracle.mixture import Mixture
from rtdmd.oracle.setting import Setting
from tools.oracle_pictures import draw_clouds


@dataclass(frozen=True)
class Variant:
    """A row: its name, the stage, what it changes of the oracle's settings, and its seeds."""

    name: str
    stage: str
    changes: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1)
    step_aware: bool = False


SUBSET = {"trained_steps": 2, "share_noise": True}
PUBLISHED = SUBSET | {
    "matching_path": "last_step",
    "update_order": "fake_first",
    "loss_average": "all_steps",
    "fake_samples": "data",
    "fake_updates_per_epoch": 1,
    "renoise_time": "clamped",
    "drop_zero_advantage": False,
    "advantage_std": "batch",
    "baseline": "group_mean",
    "subset_factor": False,
    "density": "published",
    "advantage_clip": 5.0,
    "normalise_matching": True,
    "weighting": "clamp",
}
"""The public code's choices; weights, rates and sizes are the oracle's, since its own are made for real images."""

PUBLISHED_ONE = {
    "generator_rollout": "own",
    "ema_per": "iteration",
    "renoise_time": "clamped",
    "weighting": "clamp",
    "consistency": {"weight": 0.01, "delta": "integer"},
}
"""The same of stage one."""

RANDOM = {
    "matching_path": "random_step",
    "fake_samples": "chain",
    "weights": {**reinforcement.CORRECTED["weights"], "matching": 4.0},
}
"""One of K = 4 steps is drawn an epoch, so that each has the weight 1."""


def _anchored(weight: float) -> dict[str, float]:
    """The oracle's weights with a reference KL."""
    return {**reinforcement.CORRECTED["weights"], "reference_kl": weight}


VARIANTS: tuple[Variant, ...] = (
    Variant("AC-DMD", "one", seeds=(0, 1, 2)),
    Variant("DMD2", "one", {"renoise_from": "data"}, seeds=(0, 1, 2)),
    Variant("AC-DMD, fake score told the step", "one", seeds=(0, 1, 2), step_aware=True),
    Variant("DMD2, fake score told the step", "one", {"renoise_from": "data"}, (0, 1, 2), True),
    Variant("AC-DMD, published weighting (clamp)", "one", {"weighting": "clamp"}),
    Variant("AC-DMD, consistency 0.01, published kernel", "one", {"consistency": {"weight": 0.01}}),
    Variant("AC-DMD, consistency 0.01, η* kernel", "one", {"consistency": {"weight": 0.01, "kernel": "eta_star"}}),
    Variant("AC-DMD, a rollout of the generator's own", "one", {"generator_rollout": "own"}, (0, 1, 2)),
    Variant("AC-DMD, clamped renoising times", "one", {"renoise_time": "clamped"}),
    Variant("AC-DMD, published choices together", "one", PUBLISHED_ONE),
    Variant("matching through the whole chain", "two"),
    Variant("matching as a reward", "two", {"matching_path": "reward"}),
    Variant("matching on the last step", "two", {"matching_path": "last_step"}),
    Variant("matching at a random step, weight K", "two", RANDOM, (0,)),
    Variant("published choices together", "two", PUBLISHED, (0, 1, 2, 3)),
    Variant("published choices, fake score from the chain", "two", PUBLISHED | {"fake_samples": "chain"}),
    Variant("published choices, generator first", "two", PUBLISHED | {"update_order": "generator_first"}),
    Variant("published choices, mean over the trained steps", "two", PUBLISHED | {"loss_average": "trained_steps"}),
    Variant("last step, reference KL 0.1", "two", {"matching_path": "last_step", "weights": _anchored(0.1)}, (0,)),
    Variant("last step, reference KL 1", "two", {"matching_path": "last_step", "weights": _anchored(1.0)}, (0,)),
    Variant(
        "as a reward, fake score from the chain", "two", {"matching_path": "reward", "fake_samples": "chain"}, (0,)
    ),
    Variant("as a reward, one fake update", "two", {"matching_path": "reward", "fake_updates_per_epoch": 1}, (0,)),
    Variant("as a reward, published weighting", "two", {"matching_path": "reward", "weighting": "clamp"}, (0,)),
    Variant("as a reward, SubGRPO (M = 2)", "two", {"matching_path": "reward"} | SUBSET, (0,)),
    Variant(
        "as a reward, SubGRPO, shared start", "two", {"matching_path": "reward", "share_initial": True} | SUBSET, (0,)
    ),
    Variant(
        "as a reward, SubGRPO, no factor", "two", {"matching_path": "reward", "subset_factor": False} | SUBSET, (0,)
    ),
    Variant("as a reward, group mean", "two", {"matching_path": "reward", "baseline": "group_mean"}, (0,)),
    Variant(
        "as a reward, advantages over their std", "two", {"matching_path": "reward", "advantage_std": "batch"}, (0,)
    ),
    Variant("as a reward, matching normalised", "two", {"matching_path": "reward", "normalise_matching": True}, (0,)),
    Variant(
        "as a reward, every term at norm 1", "two", {"matching_path": "reward", "gradient_scaling": "unit_norm"}, (0,)
    ),
)


def rows(variants: tuple[Variant, ...] = VARIANTS, clouds: dict[str, Tensor] | None = None) -> Iterator[dict[str, Any]]:
    """One row per variant and seed; the samples of stage two's first seed go to ``clouds`` by name."""
    for variant in variants:
        for seed in variant.seeds:
            setting = Setting(seed=seed)
            start = time.process_time()
            row: dict[str, Any] = {"stage": variant.stage, "variant": variant.name, "seed": seed}
            if variant.stage == "one":
                row["distance"] = training.distance_after(setting, variant.changes, variant.step_aware)
            else:
                end = reinforcement.outcome(setting, **variant.changes)
                row |= {"reward": end.reward, "variance": end.variance, "distance": end.distance}
                if clouds is not None and seed == variant.seeds[0]:
                    clouds[variant.name] = end.samples
            yield row | {"seconds": time.process_time() - start}


COLUMNS = ("stage", "variant", "seed", "reward", "variance", "distance", "seconds")
SHOWN = ("matching on the last step", "matching through the whole chain", "matching as a reward")


def run(folder: Path, variants: tuple[Variant, ...] = VARIANTS) -> Iterator[str]:
    """Measure every variant; one line of text a row, and at the end study.csv and clouds.png in ``folder``."""
    clouds: dict[str, Tensor] = {}
    measured = []
    for row in rows(variants, clouds):
        measured.append(row)
        yield "  ".join(f"{name} {row[name]:.3g}" if name in COLUMNS[2:] else str(row[name]) for name in row)
    write_table(measured, folder / "study.csv")
    shown = {name: clouds[name] for name in SHOWN if name in clouds}
    if shown:
        draw_clouds(shown, mixtures(), folder / "clouds.png")


def mixtures() -> dict[str, Mixture]:
    """The distributions of the picture: the teacher, its plain tilt p exp(βr), and where stage two ends (β = D
    w_r/w_m)."""
    teacher = reinforcement.MIXTURE
    weights = reinforcement.CORRECTED["weights"]
    linear = torch.tensor(LINEAR, dtype=torch.float64)
    beta = teacher.dims * weights["backprop"] / weights["matching"]
    tilted = teacher.tilted(linear, torch.zeros(2, 2, dtype=torch.float64), beta)
    return {"teacher p": teacher, "p exp(βr)": tilted, "fixed point": reinforcement.fixed_point(teacher)}


def write_table(measured: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows as CSV, numbers to three significant digits; a cell that a stage does not have stays empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in measured:
        cells = (row.get(name, "") for name in COLUMNS)
        writer.writerow([f"{cell:.3g}" if isinstance(cell, float) else cell for cell in cells])
    write_atomic(path, text.getvalue())
