"""The golden check: before a run trusts a scorer, the scorer says again what it said before about drawn pictures.

Published scorers fail silently: a mangled input or a half-loaded model still gives numbers. Here the scores of a small
case (golden_cases.py) are held against a record of the same weights, code version, pictures and device. Records lie in
``golden.json`` beside this file for the embedded world's scorers and in ``.rtdmd/golden`` for all others, where the
first run writes them. A scorer without a record is still checked: scores have to be finite, inside its range, different
for different pictures, and to carry the gradient that they promise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rtdmd.common.errors import UserError
from rtdmd.common.files import hash_of, read_json, write_json
from rtdmd.rewards.golden_cases import case_of
from rtdmd.rewards.protocol import Case, Reward

COMMITTED = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-3
"""Of the spread of the recorded scores: a shift that cannot reorder what a run compares. Float32's own rounding is a
tenth of it where cosines spread by a hundredth: 1e-6 / 0.01 = 1e-4."""
MIN_SPREAD = 1e-3
"""The spread that is reckoned with where a record's is smaller (scores that do not vary): 1e-6 is rounding."""
VERSION = 1


@dataclass(frozen=True)
class Golden:
    """What a scorer said about its case. key: hash of all that the scores depend on."""

    name: str
    key: str
    scores: tuple[float, ...]
    about: dict[str, str]  # versions, device: to explain a difference

    def as_json(self) -> dict[str, Any]:
        """A record as files keep it."""
        return {"name": self.name, "scores": list(self.scores), "about": self.about}


def check_rewards(rewards: Iterable[Reward], root: Path = Path(".")) -> list[Path]:
    """Try every scorer on its case; UserError with a diagnosis where one fails or differs from its record.

    Records that did not exist are written to ``root``/.rtdmd/golden; their paths are returned.
    """
    written = []
    committed = read_json(COMMITTED)
    for reward in rewards:
        found = measure(reward)
        own = _path(root, found)
        if own.is_file():
            _compare(found, read_json(own), own)
        elif found.key in committed:
            _compare(found, committed[found.key], COMMITTED)
        else:
            write_json(own, found.as_json())
            written.append(own)
    return written


def record_rewards(rewards: Iterable[Reward], root: Path = Path("."), file: Path | None = None) -> list[Path]:
    """Write the scorers' records anew, into ``root``/.rtdmd/golden or into one ``file`` of many; returns the paths.

    A scorer that fails its check (constant, out of range, no gradient) is not recorded: UserError.
    """
    found = [measure(reward) for reward in rewards]
    if file is not None:
        records = read_json(file) if file.is_file() else {}
        write_json(file, records | {golden.key: golden.as_json() for golden in found})
        return [file]
    for golden in found:
        write_json(_path(root, golden), golden.as_json())
    return [_path(root, golden) for golden in found]


def measure(reward: Reward) -> Golden:
    """A scorer's scores on its case, after the checks that need no record: UserError, or what the scorer raises."""
    case = case_of(reward.name)
    images, prompts, metadata = case.crossed()
    with torch.no_grad():
        scores = reward.score(images, prompts, metadata)
    if scores.shape != (len(images),):
        raise UserError(f"reward {reward.name} gave scores {tuple(scores.shape)} for {len(images)} images")
    _check_scores(reward, case, scores.tolist())
    if reward.differentiable:
        _check_gradient(reward, case)
    where = scores.device.type if scores.device.type == "cpu" else torch.cuda.get_device_name(scores.device)
    key = hash_of({"identity": reward.identity(), "case": case.digest(), "device": where, "version": VERSION})
    about = {"device": where, **{package: version(package) for package in ("torch", "transformers")}}
    return Golden(reward.name, f"{reward.name}-{key[:16]}", tuple(scores.tolist()), about)


def _path(root: Path, golden: Golden) -> Path:
    return root / ".rtdmd" / "golden" / f"{golden.key}.json"


def _check_scores(reward: Reward, case: Case, scores: list[float]) -> None:
    """UserError for a score outside the scorer's range, or the same one for all pictures."""
    low, high = reward.range
    for index, score in enumerate(scores):
        if not low - 1e-6 <= score <= high + 1e-6:
            raise UserError(
                f"reward {reward.name} gave {score:.6g} at image {index}, outside its range {low} to {high}"
            )
    number = len(case.pictures)
    for row, prompt in enumerate(case.prompts):
        part = scores[row * number : (row + 1) * number]
        if case.varies and max(part) - min(part) <= 1e-6 * max(1.0, *map(abs, part)):
            listed = ", ".join(repr(seen) for seen in case.seen)
            raise UserError(
                f"reward {reward.name} gives {part[0]:.6g} to all of {listed} for {prompt!r}: it does not look"
                " at the picture. Its weights or its preprocessing are not what they should be"
            )


def _check_gradient(reward: Reward, case: Case) -> None:
    image = case.pictures[:1].clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(reward.score(image, case.prompts[:1], case.metadata[:1]).sum(), image)
    if not torch.isfinite(gradient).all() or not gradient.abs().max() > 0:
        raise UserError(f"reward {reward.name} says that it is differentiable, but its gradient is zero or not finite")


def _compare(found: Golden, record: dict[str, Any], path: Path) -> None:
    """UserError where a score is further from its record than TOLERANCE of the record's spread."""
    expected: list[float] = record["scores"]
    allowed = TOLERANCE * max(max(expected) - min(expected), MIN_SPREAD)
    off = [abs(a - b) for a, b in zip(found.scores, expected, strict=True)]
    if max(off) <= allowed:
        return
    worst = off.index(max(off))
    changed = [f"{k} {record['about'].get(k)} -> {v}" for k, v in found.about.items() if record["about"].get(k) != v]
    raise UserError(
        f"reward {found.name} gives {found.scores[worst]:.6g} at drawn image {worst} where {path} says"
        f" {expected[worst]:.6g} (allowed: {allowed:.2g}), with the same weights. Changed since: "
        f"{', '.join(changed) or 'nothing known, so look at the code and the hardware'}."
        f" If the new scores are right: `rtdmd rewards record`, and compare with no earlier result"
    )
