"""What one update of each stage needs: rows (images) that go through each model pass, from the parameters alone. Of
terms that need no norm of their own and meet in a pass (`rtdmd.train.learner.shared_terms`) one backward pass serves
all.

A test counts the passes of the real stages and finds these. Where an update draws something (the stop, the trained
steps) the figure is its mean; where it depends on the data (images of zero advantage need no policy pass) it is the
largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

from rtdmd.config import Params
from rtdmd.config.families import FAMILIES
from rtdmd.config.training import ConsistencyParams

Rows = dict[str, float]
"""Pass -> rows. A pass is `<role> forward`, `<role> backward`, or one of decode and rewards, whose gradient counts as
its own pass. `teacher`: its guided velocity; `unguided-teacher`: the plain one. `score`: every reward; `pathwise`:
those with a gradient."""


def summed(*parts: Mapping[str, float]) -> Rows:
    return {name: sum(part.get(name, 0.0) for part in parts) for part in parts for name in part}


def scaled(part: Mapping[str, float], factor: float) -> Rows:
    return {name: factor * count for name, count in part.items()}


def learned(role: str, rows: float) -> Rows:
    return {f"{role} forward": rows, f"{role} backward": rows}


def scored(rows: float) -> Rows:
    """Decoder and all rewards, without gradient."""
    return {"decode forward": rows, "score forward": rows}


def acdmd_rows(params: Params) -> Rows:
    """One iteration of stage one, generator turns spread over all. A turn on a rollout of its own also runs that, and
    the fake score once more."""
    p = params.train_acdmd
    steps = params.model.num_steps
    executed = steps if p.rollout_stop == "last" else (steps + 1) / 2
    roll_out = {"generator forward": p.batch_size * executed}
    turn: Rows = {"generator backward": p.batch_size, "teacher forward": p.batch_size}
    if p.generator_rollout == "own":
        turn |= roll_out | {"fake forward": p.batch_size}
    return summed(
        roll_out,
        scaled(turn, 1 / p.generator_every),
        fake_rows(p.batch_size, p.consistency),
    )


def fake_rows(size: int, consistency: ConsistencyParams) -> Rows:
    """One update of the fake score on ``size`` images."""
    return learned("fake", size * (1 + pairs(consistency)))


def pairs(consistency: ConsistencyParams) -> int:
    """Further rows of an image in a fake-score update: its samples in the consistency term."""
    if consistency.weight == 0:
        return 0
    return 1 if consistency.estimator == "one_sample" else 2


def rtdmd_rows(params: Params) -> Rows:
    return summed(*rtdmd_parts(params).values())


def rtdmd_parts(params: Params) -> dict[str, Rows]:
    """The same by part: roll_out, score, credit, policy, nft, awm, surrogate, last_step, fake."""
    p = params.train_rtdmd
    images = p.prompts_per_epoch * p.group_size
    subsets = list(combinations(p.candidate_steps, p.trained_steps))
    chains = [chain_rows(params, trained) for trained in subsets]
    means = {}
    for part in chains[0]:
        rows = [chain[part] for chain in chains]
        means[part] = scaled(summed(*rows), 1 / len(subsets))
    return {
        "roll_out": means["roll_out"],
        "score": scored(images),
        "credit": means["credit"],
        "policy": means["policy"],
        "nft": learned("generator", images) if p.weights.nft > 0 else {},
        "awm": learned("generator", images) if p.weights.awm > 0 else {},
        "surrogate": surrogate_rows(params) if p.weights.surrogate > 0 else {},
        "last_step": last_rows(params),
        "fake": scaled(fake_rows(min(p.fake_batch_size, images), p.consistency), p.fake_updates_per_epoch),
    }


def chain_rows(params: Params, trained: tuple[int, ...]) -> dict[str, Rows]:
    """Rollout, stepwise credit and policy gradient of one epoch that trains these steps: a group whose images are
    still equal at a step takes one row there."""
    from rtdmd.flow.credit import scored_steps  # imports torch

    p = params.train_rtdmd
    steps = params.model.num_steps
    images = p.prompts_per_epoch * p.group_size
    equal = p.share_initial
    anchored = p.weights.reference_kl > 0
    backwards = (p.weights.policy > 0) + (p.matching_path == "reward") + anchored
    passed = backwards > 0
    if p.gradient_scaling == "none":
        backwards = int(passed)
    rolled = policy = 0.0
    for k in range(steps):
        count = p.prompts_per_epoch if equal else images
        rolled += count
        policy += count * (passed and k in trained)
        equal = equal and p.share_noise and k not in trained
    own = {"generator forward": policy, "generator backward": policy * backwards}
    return {
        "roll_out": {"generator forward": rolled},
        "credit": scored(images * len(scored_steps(trained, steps - 1, p.credit))),
        "policy": own | {"reference forward": policy * anchored},
    }


def surrogate_rows(params: Params) -> Rows:
    """The surrogate's update, whose groups' preferences take a pass of their own, and the term that it gives the
    generator."""
    p = params.train_rtdmd
    images = p.prompts_per_epoch * p.group_size
    learning = min(p.surrogate.prompts, p.prompts_per_epoch) * p.group_size
    size = min(p.last_step_batch_size, images)
    both = guided_passes(params) if p.surrogate.guidance > 0 else 1
    return summed(
        {"surrogate forward": 2 * learning, "surrogate backward": learning, "unguided-teacher forward": 2 * learning},
        {"surrogate forward": both * size, "unguided-teacher forward": size},
        learned("generator", size),
    )


def guided_passes(params: Params) -> int:
    """Passes of a role for one guided velocity: two for classifier-free guidance."""
    return 1 if params.model.guidance == 1 else FAMILIES[params.model.family].guided_passes


def last_rows(params: Params) -> Rows:
    """Distribution matching and reward back-propagation of one epoch."""
    p = params.train_rtdmd
    images = p.prompts_per_epoch * p.group_size
    size = images if p.matching_path == "reward" else min(p.last_step_batch_size, images)
    matched = p.weights.matching > 0
    propagated = p.weights.backprop > 0
    parts: list[Rows] = []
    if p.last_step_from == "renoised" and (matched or propagated):
        parts.append({"generator forward": size})  # the image, before its step is run again for the gradient
    if propagated:
        parts += [learned("generator", size), learned("decode", size), learned("pathwise", size)]
        if any(reward.offload and reward.differentiable for reward in p.rewards):
            parts.append({"decode forward": size})  # for the scorers' turns, and again for the gradient
    if matched:
        teacher = "teacher" if p.matching_guidance > 0 else "unguided-teacher"
        parts += [{"fake forward": size, f"{teacher} forward": size}, scored(size * (p.matching_gain > 0))]
        parts.append(scaled(_matched(params), size))
    return summed(*parts)


def _matched(params: Params) -> Rows:
    """Generator passes of an image's matching beside those that back-propagation makes through the same step."""
    p = params.train_rtdmd
    steps = params.model.num_steps
    if p.matching_path == "whole_chain":  # each step forward, again for its gradient, and backward
        return {"generator forward": 2 * steps, "generator backward": steps}
    same = 0.0  # how often both go through the same step
    if p.weights.backprop > 0:
        same = 1 / steps if "random_step" in (p.matching_path, p.backprop_at) else 1.0
    shared = same if p.gradient_scaling == "none" else 0.0
    return {"generator forward": 1 - same, "generator backward": 1 - shared}


def watch_rows(params: Params, images: int) -> Rows:
    """Evaluations of the student of a training stage: so many images of it."""
    return summed(scored(images), {"generator forward": images * params.model.num_steps})


def distribution_rows(params: Params, images: int) -> Rows:
    """``images`` of the teacher from which evaluate measures divergences, which the verifier alone reads."""
    return {"decode forward": images, "teacher forward": images * params.model.teacher_steps}


def evaluate_rows(params: Params, images: int) -> Rows:
    """The whole of evaluate: ``images`` of each model, and of the student at each other η."""
    model = params.model
    steps = {"teacher": model.teacher_steps, "teacher_few_step": model.num_steps}
    levels = [eta for eta in params.evaluate.etas if eta != model.eta]
    parts: list[Rows] = []
    for name in (*params.evaluate.models, *("train_rtdmd" for _ in levels)):
        role = "teacher" if name in steps else "generator"
        parts += [scored(images), {f"{role} forward": images * steps.get(name, model.num_steps)}]
    return summed(*parts)
