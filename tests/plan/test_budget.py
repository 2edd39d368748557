"""The budget counts what the stages run: images through every role, with and without gradient, method by method."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rtdmd.config import preset
from rtdmd.config.presets import merged
from rtdmd.methods import METHODS
from rtdmd.plan import budget
from rtdmd.plan.budget import Prices
from rtdmd.stages import train_acdmd, train_rtdmd
from tests.train.workshop import FREE, count_passes, make_trainable
from tests.workspace import set_params

REWARDS = [  # the tiny student's images are all wrong: only CLIP tells them apart
    {"name": "clipscore", "model": "data/world/clip", "weight": 1.0},
    {"name": "world_verifier", "weight": 1.0, "soft_weight": 0.0},
]
EVERY_IMAGE: dict[str, Any] = {
    "train_rtdmd": {
        "recipe": "custom",
        "epochs": 1,
        "drop_zero_advantage": False,
        "consistency": {"weight": 0.0},
        "rewards": REWARDS,
    }
}
EXACT = ("subgrpo-2-last", "matching-only", "gdmd", "dmd-nft", "draft-1", "stepwise", "rtdmd-corrected", "tdm-r1")
"""Methods without a draw between passes of unequal cost (a random step shared with back-propagation's or not)."""


@pytest.fixture(scope="module")
def root(tiny_teacher: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    make_trainable(folder, tiny_teacher, tiny_clip)
    train_acdmd.run(folder)
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    return count_passes(monkeypatch)


@pytest.mark.parametrize("name", EXACT)
def test_an_epoch_runs_what_it_is_charged_for(name: str, root: Path, counted: Counter[str]) -> None:
    changes = merged(METHODS[name].changes(), EVERY_IMAGE)
    if "candidate_steps" not in changes["train_rtdmd"]:
        changes["train_rtdmd"]["candidate_steps"] = [2]  # the preset's two cost unequal passes
    params = set_params(root, changes)
    shutil.rmtree(root / ".rtdmd", ignore_errors=True)
    train_rtdmd.run(root)
    for role, price in (("generator", "two"), ("teacher", "teacher")):
        assert counted[role] == sum(budget.stage_two_epoch(params, Prices(**FREE | {price: 1.0})).values()), role
    fakes = budget.stage_two_epoch(params, Prices(**FREE | {"one": 1.0}))
    assert counted["fake"] + counted["surrogate"] == sum(fakes.values())
    backward = sum(budget.stage_two_epoch(params, Prices(**FREE | {"backward": 1.0})).values())
    assert counted["backward"] == backward


@pytest.mark.parametrize("name", ["acdmd", "dmd2-last"])
def test_iterations_of_stage_one_run_what_they_are_charged_for(name: str, root: Path, counted: Counter[str]) -> None:
    """Over the four smoke iterations, two of them with the generator's turn. The stop is random for AC-DMD: its mean
    is charged, and the stops drawn are counted."""
    params = set_params(root, METHODS[name].changes())
    train_acdmd.run(root)
    p = params.train_acdmd
    charged = {
        price: p.iterations * budget.stage_one_iteration(params, Prices(**FREE | {price: 1.0}))
        for price in ("one", "teacher")
    }
    assert counted["teacher"] == charged["teacher"] == 2 * 2 * p.batch_size
    fakes = p.iterations * p.batch_size * (3 if p.consistency.weight > 0 else 1)
    assert counted["fake"] == fakes
    rolled = charged["one"] - fakes
    if p.rollout_stop == "last":
        assert counted["generator"] == rolled == p.iterations * 4 * p.batch_size
    else:
        assert rolled == p.iterations * 2.5 * p.batch_size
        assert p.iterations * p.batch_size <= counted["generator"] <= p.iterations * 4 * p.batch_size


def test_lengths_spend_the_same_budget_to_half_an_epoch() -> None:
    base = preset("world")
    for method in METHODS.values():
        params, whole = preset("world", method.changes()), budget.cost(base, method.stage)
        length = budget.length_within(params, method.stage, whole)
        unit = "iterations" if method.stage == "train_acdmd" else "epochs"
        same = preset("world", merged(method.changes(), {method.stage: {unit: length}}))
        one = budget.cost(same, method.stage) / length
        assert abs(budget.cost(same, method.stage) - whole) <= one / 2 * (1 + 1e-9)
    assert budget.length_within(base, "train_rtdmd", budget.cost(base, "train_rtdmd")) == base.train_rtdmd.epochs
    assert budget.length_within(base, "train_acdmd", 1.0) == base.train_acdmd.generator_every


def test_groups_that_share_their_start_are_run_once() -> None:
    """World: 512 images in groups of 8, step 1 or 2 trained. Equal before: steps 0 and 1, or 0 to 2, at 64 images."""
    two = Prices(**FREE | {"two": 1.0})
    steps = {"candidate_steps": [1, 2]}
    parts = budget.stage_two_epoch(preset("world", {"train_rtdmd": steps}), two)
    assert (parts["roll_out"], parts["policy"]) == ((64 + 64 + 512 + 512 + 64 + 64 + 64 + 512) / 2, 64)
    free = budget.stage_two_epoch(preset("world", {"train_rtdmd": steps | {"share_initial": False}}), two)
    assert (free["roll_out"], free["policy"]) == (4 * 512, 512)


def test_a_generators_own_roll_out_is_charged_for() -> None:
    """On its turn: half the steps and a half on average, and the fake score once more on each prompt."""
    shared, own = (preset("world", {"train_acdmd": {"generator_rollout": kind}}) for kind in ("shared", "own"))
    one = Prices(**FREE | {"one": 1.0})
    p, more = own.train_acdmd, budget.stage_one_iteration(own, one) - budget.stage_one_iteration(shared, one)
    assert own.model.num_steps == 4
    assert more == pytest.approx(p.batch_size * (2.5 + 1) / p.generator_every, rel=1e-12)


@pytest.mark.parametrize(
    ("stage_one", "fake", "two", "plain"),
    [
        ("stacked", "continued", ("generator",), ()),
        ("stacked", "new", ("generator", "fake"), ()),
        ("merged", "continued", (), ("reference",)),
        ("merged", "new", (), ("reference",)),
    ],
)
def test_a_pass_has_the_price_of_its_adapters(
    stage_one: str, fake: str, two: tuple[str, ...], plain: tuple[str, ...]
) -> None:
    """Roles of stage two on two adapters (`two`), on none (`plain`), and the rest on one."""
    params = preset("world", {"train_rtdmd": {"stage_one_adapters": stage_one, "fake_adapter": fake}})
    for role in ("generator", "reference", "fake"):
        prices = budget.WORLD
        expected = prices.two if role in two else prices.teacher if role in plain else prices.one
        assert budget.priced({f"{role} forward": 3.0}, params, "train_rtdmd", prices) == 3 * expected
        if role != "reference":  # stage one has one adapter a role, whatever stage two does
            assert budget.priced({f"{role} forward": 3.0}, params, "train_acdmd", prices) == 3 * prices.one


def test_only_kept_images_are_charged_for_the_policy_pass() -> None:
    params = preset("world")
    whole, half = (budget.stage_two_epoch(params, frac_nonzero=frac_nonzero)["policy"] for frac_nonzero in (1.0, 0.5))
    assert half == whole / 2 > 0
