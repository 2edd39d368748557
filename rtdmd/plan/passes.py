"""What one update of each stage runs: rows (images) that go through each model pass, from the parameters alone.

A test counts the passes of the real stages and finds these. Where an update draws something (the stop, the trained
steps) the figure is its mean; where it depends on the data (images of zero advantage need no policy pass) it is the
largest.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from rtdmd.config import Params
from rtdmd.config.train_acdmd import ConsistencyParams

Rows = Counter[str]
"""Pass -> rows. A pass is `<role> forward`, `<role> backward`, or one of decode and rewards, whose gradient counts as
its own pass. `score`: every reward; `pathwise`: those with a gradient."""


def acdmd_rows(params: Params) -> Rows:
    """One iteration of stage one, generator turns spread over all."""
    p, steps = params.train_acdmd, params.model.num_steps
    turn = 1 / p.generator_every
    rows: Rows = Counter()
    rows["generator forward"] = p.batch_size * (steps + 1) / 2
    rows["generator backward"] = rows["teacher forward"] = p.batch_size * turn
    return rows + fake_rows(p.batch_size, p.consistency)


def fake_rows(size: int, consistency: ConsistencyParams) -> Rows:
    """One update of the fake score on ``size`` images; both samples of the consistency term take a row."""
    pairs = {"one_sample": 1, "two_sample": 2}[consistency.estimator] if consistency.weight > 0 else 0
    return Counter({"fake forward": size * (1 + pairs), "fake backward": size * (1 + pairs)})


def rtdmd_rows(params: Params) -> Rows:
    """One epoch of stage two."""
    p = params.train_rtdmd
    images = p.prompts_per_epoch * p.group_size
    rows: Rows = Counter({"decode forward": images, "score forward": images})
    subsets = list(combinations(p.candidate_steps, p.trained_steps))
    for trained in subsets:
        for name, count in chain_rows(params, trained).items():
            rows[name] += count / len(subsets)
    rows += last_rows(params)
    for name, count in fake_rows(min(p.fake_batch_size, images), p.consistency).items():
        rows[name] += p.fake_updates_per_epoch * count
    return rows


def chain_rows(params: Params, trained: tuple[int, ...]) -> Rows:
    """Roll-out and policy gradient of one epoch that trains these steps: a group whose images are still equal at a step
    takes one row there."""
    p = params.train_rtdmd
    images, rows, equal = p.prompts_per_epoch * p.group_size, Counter[str](), p.share_initial
    backwards = 1 + (p.matching_path == "reward" and p.weights.matching > 0) + (p.weights.reference_kl > 0)
    passed = p.weights.policy > 0 or backwards > 1
    for k in range(params.model.num_steps):
        count = p.prompts_per_epoch if equal else images
        rows["generator forward"] += count
        if passed and k in trained:
            rows["generator forward"] += count
            rows["generator backward"] += count * backwards
            rows["reference forward"] += count * (p.weights.reference_kl > 0)
        equal = equal and p.share_noise and k not in trained
    return rows


def last_rows(params: Params) -> Rows:
    """Distribution matching and reward back-propagation of one epoch."""
    p, steps = params.train_rtdmd, params.model.num_steps
    images = p.prompts_per_epoch * p.group_size
    size = images if p.matching_path == "reward" else min(p.last_step_batch_size, images)
    matched, propagated = p.weights.matching > 0, p.weights.backprop > 0
    at_last = 1 / steps if p.matching_path == "random_step" else float(p.matching_path != "whole_chain")
    rows: Rows = Counter()
    if propagated:
        for name in ("generator", "decode", "pathwise"):
            rows[f"{name} forward"] += size
            rows[f"{name} backward"] += size
    if not matched:
        return rows
    rows["fake forward"] += size
    rows["teacher forward"] += size
    if p.matching_path == "whole_chain":  # each step forward, again for its gradient, and backward
        rows["generator forward"] += size * (2 * steps + (not propagated))
        rows["generator backward"] += size * steps
        return rows
    rows["generator forward"] += size * ((1 - at_last) if propagated else 1)
    rows["generator backward"] += size
    return rows


def evaluate_rows(params: Params, images: int) -> Rows:
    """The whole of evaluate: ``images`` of each model, and of the student at each other noise level."""
    model, rows = params.model, Counter[str]()
    levels = [eta for eta in params.evaluate.etas if eta != model.eta]
    for name in (*params.evaluate.models, *("train_rtdmd" for _ in levels)):
        if name == "teacher":
            rows["teacher forward"] += images * model.teacher_steps
        elif name == "teacher_few_step":
            rows["teacher forward"] += images * model.num_steps
        else:
            rows["generator forward"] += images * model.num_steps
        rows["decode forward"] += images
        rows["score forward"] += images
    return rows
