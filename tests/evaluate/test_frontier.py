"""The frontier plot's data: the teacher at the curve's lower end, models where their distributions are, and paths in
order."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from rtdmd.common.errors import UserError
from rtdmd.evaluate.divergence import by_kind, caption_weights, divergence, teacher_optimum
from rtdmd.evaluate.frontier import HIGHEST, PATH_REPLICATES, POINTS, frontier, optimum_curve, teacher_items
from rtdmd.evaluate.parses import Parses
from rtdmd.evaluate.plan import plan_images
from rtdmd.prompts.records import Prompt
from tests.evaluate.world_distributions import bank, draw


@pytest.fixture(scope="module")
def samples() -> dict[str, Parses]:
    """Sixty images per tag of the teacher, of a second sample of it, and of its tilts."""
    distribution, rng = bank(), np.random.default_rng(0)
    betas = {"pool": 0.0, "teacher": 0.0, "worse": -0.7, "better": 1.5, "early": 0.4}
    return {name: draw(distribution, np.exp(beta * distribution.right), 60, rng) for name, beta in betas.items()}


@pytest.fixture(scope="module")
def found(samples: dict[str, Parses]) -> dict[str, Any]:
    models = {name: samples[name] for name in ("teacher", "worse", "better")}
    path = {"better": {20: samples["better"], 5: samples["early"]}}
    return frontier(models, samples["pool"], 0, path)


def test_the_teachers_law_is_drawn_with_noise_of_its_own() -> None:
    tags = ["colors", "colors", "colors", "position"]
    prompts = [Prompt(i, f"p{i}", tag, None) for i, tag in enumerate(tags)]
    plan = plan_images(prompts, 4)
    own = teacher_items(plan, 7)  # four of each tag
    assert [item.key for item in own] == [(0, 4), (1, 4), (2, 4), (0, 5), (3, 4), (3, 5), (3, 6), (3, 7)]
    assert not {item.key for item in own} & {item.key for item in plan}


def test_a_law_without_an_image_of_every_prompt_is_refused() -> None:
    plan = plan_images([Prompt(i, f"p{i}", tag, None) for i, tag in enumerate(["colors"] * 3 + ["position"])], 4)
    assert len(teacher_items(plan, 5)) == 6
    with pytest.raises(UserError, match=r"teacher_images: 4 leaves prompts without an image .* allowed: from 5 on"):
        teacher_items(plan, 4)


def test_the_figures_are_those_of_each_model(found: dict[str, Any], samples: dict[str, Parses]) -> None:
    assert json.loads(json.dumps(found)) == found
    assert list(found["models"]) == ["teacher", "worse", "better"]
    assert found["models"]["better"] == divergence(samples["better"], samples["pool"], 0)
    assert found["by_kind"]["worse"] == by_kind(samples["worse"], samples["pool"], 0)


def test_the_curve_runs_from_the_lowest_reward_through_the_teacher_to_the_highest(found: dict[str, Any]) -> None:
    curve = found["optimum"]
    rewards, costs, betas = (np.array([point[name] for point in curve]) for name in ("reward", "kl", "beta"))
    assert len(curve) == 2 * POINTS - 1
    assert (np.diff(rewards) > 0).all() and (np.diff(betas) > 0).all()
    assert rewards[0] == pytest.approx(found["models"]["worse"]["reward"]["mean"], abs=1e-5)
    assert rewards[-1] == pytest.approx(HIGHEST, abs=1e-5)
    at = int(np.flatnonzero(betas == 0.0)[0])
    assert at == POINTS - 1 and costs[at] == 0 and costs.min() == 0
    assert (np.diff(costs[at:]) > 0).all() and (np.diff(costs[: at + 1]) < 0).all()
    steps = np.diff(rewards[at:])
    assert steps == pytest.approx(np.full(POINTS - 1, steps.mean()), rel=1e-3)


def test_without_a_worse_model_the_curve_starts_at_the_teacher(samples: dict[str, Parses]) -> None:
    best = teacher_optimum(samples["pool"], caption_weights(samples["better"]))
    curve = optimum_curve(best, 0.9)
    assert len(curve) == POINTS
    assert curve[0] == {"beta": 0.0, "reward": round(float(best.reward(0.0)), 6), "kl": 0.0}


def test_a_path_goes_by_epoch_and_has_the_models_figures(found: dict[str, Any], samples: dict[str, Parses]) -> None:
    points = found["paths"]["better"]
    assert [point["epoch"] for point in points] == [5, 20]
    alone = divergence(samples["early"], samples["pool"], 0, PATH_REPLICATES)
    means = {name: alone[name]["mean"] for name in ("reward", "kl", "optimum", "excess")}
    widths = {f"{name}_ci95": alone[name]["ci95"] for name in ("reward", "excess")}
    assert points[0] == {"epoch": 5} | means | widths
    assert points[1]["reward"] == found["models"]["better"]["reward"]["mean"]
