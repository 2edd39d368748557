"""Means and differences over seeds against hand computation; the plan and the paper's orders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rtdmd.common.errors import UserError
from rtdmd.config import preset
from rtdmd.evaluate.tables import Scores
from rtdmd.methods import METHODS
from rtdmd.plan.budget import cost
from rtdmd.study.gather import Mean, Row, Run, difference, seed_mean
from rtdmd.study.page import marked
from rtdmd.study.paper import GAMMA, STAGE_TWO, order_agreement
from rtdmd.study.plan import SweepPlan, load_plan, run_params
from rtdmd.study.workspace import pipeline_text

T2 = 4.302652729911275  # Student's t at 0.975 with two degrees of freedom


def scores(values: list[float]) -> Scores:
    """One tag, one prompt per image."""
    count = len(values)
    return Scores(tuple(range(count)), (0,) * count, ("a",) * count, {"strict": np.array(values)})


def a_run(name: str, seed: int, values: list[float]) -> Run:
    return Run(name, seed, {}, {}, {}, scores(values), {})


def test_interval_over_seeds_by_hand() -> None:
    mean = seed_mean([0.1, 0.2, 0.6], [0.03, 0.04, 0.12])
    assert mean.mean == pytest.approx(0.3) and mean.n == 3
    assert mean.seeds == pytest.approx(T2 * np.sqrt(0.07) / np.sqrt(3))
    assert mean.noise == pytest.approx(0.13 / 3)
    assert seed_mean([0.1]).seeds is None and seed_mean([0.1, 0.2], [0.1, None]).noise is None


def test_differences_are_paired_by_seed_and_image() -> None:
    """Runs of seeds 0 to 2 against others of seeds 2, 1 and 5, images in another order: two pairs."""
    ours = [a_run("x", seed, [1.0, 0.0, 1.0, float(seed)]) for seed in range(3)]
    theirs = [a_run("y", seed, [0.0, 0.0, 1.0, 0.0]) for seed in (2, 1, 5)]
    found = difference(ours, theirs)
    assert found is not None and found.n == 2
    assert found.mean == pytest.approx(((1 + 1) / 4 + (1 + 2) / 4) / 2)
    assert difference(ours, []) is None


def test_a_figure_of_a_whole_set_is_paired_by_seed() -> None:
    """Seeds 0 to 2 differ by 1, 2 and 6 where the means alone would differ by far less than they spread."""
    ours = [replace(a_run("x", seed, [1.0]), figures={"frechet": 100.0 * seed}) for seed in range(3)]
    gaps = {2: 6.0, 0: 1.0, 1: 2.0}
    theirs = [replace(a_run("y", s, [1.0]), figures={"frechet": 100.0 * s - gap}) for s, gap in gaps.items()]
    found = difference(ours, theirs, "frechet")
    assert found is not None and found.mean == pytest.approx(3.0) and found.noise is None
    assert found.seeds == pytest.approx(T2 * np.sqrt(7) / np.sqrt(3))


def test_orders_are_confirmed_contradicted_or_left_open() -> None:
    """acdmd beats every other clearly, admd is worst, the rest cannot be told apart."""
    values = {name: [0.5] * 8 for name in GAMMA} | {"acdmd": [1.0] * 8, "admd": [0.6] * 8}
    rows = {}
    for name, own in values.items():
        step = 0.01 * (name == "acdmd")
        runs = [a_run(name, seed, [value + step * seed for value in own]) for seed in range(3)]
        rows[name] = Row(name, "train_acdmd", runs)
    found = order_agreement(rows, GAMMA)
    assert set(found["agree"]) == {f"acdmd > {name}" for name in GAMMA if name != "acdmd"}
    assert set(found["disagree"]) == {f"{name} > admd" for name in GAMMA if name not in ("acdmd", "admd")}
    assert len(found["undecided"]) == 3
    assert order_agreement({}, STAGE_TWO) == {"agree": [], "disagree": [], "undecided": []}
    assert all(name in METHODS or name == "base" for name in (*GAMMA, *STAGE_TWO))


def test_what_is_beyond_its_interval_over_seeds_is_bold() -> None:
    shown = [marked(Mean(mean, seeds, 0.01, 3)) for mean, seeds in [(-0.2, 0.1), (0.2, 0.3), (0.2, None)]]
    assert shown == ["<strong>-0.200 ± 0.100 ± 0.010</strong>", "+0.200 ± 0.300 ± 0.010", "+0.200 ± 0.010"]
    assert marked(None) == "–"


def test_the_plan_of_the_repository_is_valid_and_a_bad_one_is_one_line(tmp_path: Path) -> None:
    plan = load_plan(Path("workflow/sweep.yaml"))
    assert len(plan.seeds) == 3 and set(plan.methods) <= set(METHODS)
    assert {name for name in (*GAMMA, *STAGE_TWO) if name != "base"} <= set(plan.methods)
    short = load_plan(Path("workflow/sweep_two_cores.yaml"))
    assert short.methods == plan.methods and short.over(preset("world")).train_acdmd.iterations == 480
    main = load_plan(Path("workflow/sweep_main.yaml"))  # whose runs are some of those
    assert main.model_copy(update={"methods": short.methods}) == short and set(main.methods) <= set(short.methods)
    with pytest.raises(UserError, match=r"the sweep's params.*train_acdmd\.iteration: unknown key"):
        short.model_copy(update={"params": {"train_acdmd": {"iteration": 1}}}).over(preset("world"))
    text = Path("workflow/sweep.yaml").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace("  - gdmd\n", "  - gdmmd\n"))
    with pytest.raises(UserError, match=r"bad\.yaml: methods: .*allowed: names of `rtdmd methods`.*unknown: gdmmd"):
        load_plan(bad)
    with pytest.raises(UserError, match="no such file"):
        load_plan(tmp_path / "none.yaml")


def test_the_controls_train_on_the_presets_stage_one_for_a_share_of_its_budget() -> None:
    plan = load_plan(Path("workflow/sweep_controls.yaml"))
    base = preset("world")
    every = {name: run_params(base, plan, name, 1) for name in plan.methods}
    assert every["rtdmd"].train_rtdmd.epochs == base.train_rtdmd.epochs
    for name, share in plan.shares.items():
        spent = cost(every[name], "train_rtdmd") / cost(base, "train_rtdmd")
        assert spent == pytest.approx(share, abs=0.5 / every[name].train_rtdmd.epochs)
    assert run_params(base, plan, "base", 1).train_acdmd == base.train_acdmd
    assert not set(plan.shares) - set(plan.methods) and plan.page != load_plan(Path("workflow/sweep.yaml")).page
    with pytest.raises(ValueError, match=r"each with a number above 0 \(wrong: gdmmd, gdmd\)"):
        SweepPlan.model_validate(plan.model_dump() | {"shares": {"gdmmd": 1.0, "gdmd": 0.0}})


def test_a_run_evaluates_its_own_student_alone() -> None:
    text = Path("dvc.yaml").read_text()
    assert "grid_teacher.png" in pipeline_text(text, ["teacher"])
    one, two = pipeline_text(text, ["train_acdmd"]), pipeline_text(text, ["train_rtdmd"])
    assert "grid_train_acdmd.png" in one and "grid_train_rtdmd.png" not in one and "grid_teacher" not in one
    assert "grid_train_rtdmd.png" in two and "grid_train_acdmd.png" not in two
