"""Time to reward from journals and evaluations made by hand: when a level is reached, at what cost; tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.files import write_json
from rtdmd.config import preset
from rtdmd.evaluate.divergence import divergence
from rtdmd.evaluate.frontier import PATH_REPLICATES
from rtdmd.evaluate.parses import Parses, parses_csv
from rtdmd.pipeline.stage import run_folder as training_folder
from rtdmd.plan.budget import update_counts
from rtdmd.study.divergences import TeacherDistribution
from rtdmd.study.plan import SweepPlan, load_plan, run_params
from rtdmd.study.time_page import markdown, plot, runs_csv, table_csv
from rtdmd.study.time_to_reward import Line, Reached, Track, place_of, reach, read_track, share_of
from tests.evaluate.world_distributions import bank, draw

PLAN = Path("workflow/sweep_time_to_reward.yaml")
OURS, THEIRS = "rtdmd", "rtdmd-published"


@pytest.mark.parametrize(
    ("strict", "place"),
    [
        ([0.6, 0.7, 0.8, 0.9], 1.5),  # half way between 0.7 and 0.8
        ([0.6, 0.8, 0.7, 0.8, 0.9], 2.5),  # one evaluation above reaches nothing
        ([0.75, 0.75], 0.0),  # where it starts
        ([0.8, 0.7, 0.75, 0.76], 2.0),  # exactly at an evaluation
        ([0.6, 0.7, 0.8], None),  # nothing confirms the last one
        ([0.6, 0.7], None),
    ],
)
def test_a_level_is_reached_before_the_first_two_looks_in_a_row_above_it(
    strict: list[float], place: float | None
) -> None:
    found = place_of(np.array(strict), 0.75)
    assert found == (None if place is None else pytest.approx(place))


def laid(folder: Path, parses: Mapping[int, Parses], steps: Sequence[Mapping[str, float]]) -> None:
    """What a watched stage two leaves, its journal of these steps."""
    results = folder / "results/train_rtdmd"
    settings = {"params": {"run.seed": 0}, "inputs": {}, "versions": {"rtdmd": "1"}}
    write_json(results / "resolved.json", settings)
    lines = ["epoch,suite,prompt_id,index,tag,strict,background,cells"]
    for epoch, drawn in parses.items():
        records = parses_csv({"own": {"student": drawn}}).splitlines()[1:]
        lines += [line.replace("own,student,", f"{epoch},own,") for line in records]
    (results / "watched_parses.csv").write_text("\n".join(lines) + "\n")
    run_dir = training_folder(folder, "train_rtdmd", settings)
    run_dir.mkdir(parents=True)
    journal = [json.dumps({"epoch": number, **step}) for number, step in enumerate(steps, 1)]
    (run_dir / "journal.jsonl").write_text("\n".join(journal) + "\n")


def test_passes_and_seconds_are_those_of_the_journal_without_its_evaluations(tmp_path: Path) -> None:
    """Four epochs, evaluated after none, two and four: the first keeps half of its images in the policy pass."""
    distribution = bank()
    rng = np.random.default_rng(0)
    parses = {epoch: draw(distribution, np.ones(len(distribution)), 5, rng) for epoch in (0, 2, 4)}
    kept = (0.5, 1.0, 1.0, 0.0)
    seconds = (3.0, 4.0, 5.0, 6.0)
    steps = [
        {"frac_nonzero_advantage": share, "machine/seconds": taken, "machine/watch_seconds": 100.0}
        for share, taken in zip(kept, seconds, strict=True)
    ]
    laid(tmp_path, parses, steps)
    params = preset("world")
    track = read_track(tmp_path, params, (OURS, 0), "own")
    policy = 2 * params.train_rtdmd.prompts_per_epoch  # forward and backward, from what a group shares
    whole = sum(update_counts(params, "train_rtdmd"))
    assert track.updates.tolist() == [0, 2, 4]
    assert track.seconds.tolist() == [0.0, 7.0, 18.0]
    assert track.passes == pytest.approx([0.0, 2 * whole - policy / 2, 4 * whole - 1.5 * policy])
    by_tag = [parses[2].right[parses[2].tags == tag].mean() for tag in np.unique(parses[2].tags)]
    assert track.strict[1] == pytest.approx(np.mean(by_tag))
    with pytest.raises(
        UserError, match=r"watched_parses\.csv: 0 evaluations on the suite other, .*allowed: a suite of train_rtdmd"
    ):
        read_track(tmp_path, params, (OURS, 0), "other")
    next(tmp_path.glob(".rtdmd/runs/*/journal.jsonl")).unlink()
    with pytest.raises(UserError, match=r"no such file.*`rm -r .*train_rtdmd`, then `rtdmd sweep run rtdmd 0`"):
        read_track(tmp_path, params, (OURS, 0), "own")


def test_the_excess_is_that_of_the_looks_on_both_sides() -> None:
    distribution, rng = bank(), np.random.default_rng(1)
    teacher = draw(distribution, np.ones(len(distribution)), 60, rng)
    parses = [draw(distribution, np.exp(beta * distribution.right), 30, rng) for beta in (0.0, 0.7, 1.5)]
    track = a_track(OURS, 0, [0.6, 0.7, 0.8, 0.9], [parses[0], parses[1], parses[2], parses[2]])
    found = reach(track, 0.725, TeacherDistribution("own", teacher, teacher, 3)).found
    sides = [divergence(one, teacher, 3, PATH_REPLICATES)["excess"]["mean"] for one in parses[1:]]
    assert found is not None and found["excess"] == pytest.approx(0.75 * sides[0] + 0.25 * sides[1])
    assert "excess" not in (reach(track, 0.725, None).found or {})


def a_track(name: str, seed: int, strict: Sequence[float], parses: Sequence[Parses] = ()) -> Track:
    """Evaluated every ten epochs, of 1000 passes and 2 seconds an epoch."""
    epochs = 10 * np.arange(len(strict))
    return Track(name, seed, epochs, np.array(strict), 1000.0 * epochs, 2.0 * epochs, parses)


def lines() -> list[Line]:
    """Two seeds: ours reaches 0.75 after 5 and 15 epochs of 1000 passes, theirs in one seed after 20."""
    tracks = {
        OURS: [a_track(OURS, 0, [0.7, 0.8, 0.9, 0.9]), a_track(OURS, 1, [0.6, 0.7, 0.8, 0.8])],
        THEIRS: [a_track(THEIRS, 0, [0.5, 0.6, 0.75, 0.8, 0.8]), a_track(THEIRS, 1, [0.5, 0.5, 0.6, 0.6, 0.6])],
    }
    return [Line(name, "0.75", [reach(track, 0.75, None) for track in own]) for name, own in tracks.items()]


def test_tables_have_mean_range_and_share_by_hand() -> None:
    ours, theirs = lines()
    assert share_of(ours, theirs) == (pytest.approx((5 / 20 + 15 / 40) / 2), False)
    assert share_of(ours, Line(THEIRS, "0.75", theirs.runs[:1])) == (pytest.approx(0.25), True)
    assert share_of(theirs, ours) is None  # a seed of its own has not reached it
    at_once = Reached(0, 0.75, {"updates": 0.0, "passes": 0.0, "seconds": 0.0}, theirs.runs[0].last)
    assert share_of(ours, Line(THEIRS, "0.75", [at_once])) is None
    table = {row["run"]: row for row in csv.DictReader(io.StringIO(table_csv([ours, theirs], [THEIRS])))}
    names = ("reached", "length", "updates", "passes_low", "passes_high", "seconds", "excess", "share", "share_is")
    assert [table[OURS][name] for name in names] == ["2", "30", "10", "5000", "15000", "20", "", "0.3125", "less"]
    assert [table[THEIRS][name] for name in names] == ["1", "40", "20", "20000", "20000", "40", "", "", ""]
    runs = list(csv.DictReader(io.StringIO(runs_csv([ours, theirs]))))
    assert [run["passes"] for run in runs] == ["5000", "15000", "20000", ""]
    assert [run["last_passes"] for run in runs] == ["30000", "30000", "40000", "40000"]


def test_what_only_the_last_look_reaches_is_known_not_to_be_there_before_the_one_below() -> None:
    found = reach(a_track(THEIRS, 0, [0.5, 0.6, 0.7, 0.8]), 0.75, None)
    assert found.found is None and found.last == {"updates": 20.0, "passes": 20000.0, "seconds": 40.0}


def test_what_was_not_reached_is_said_in_words() -> None:
    ours, theirs = lines()
    never = Line(THEIRS, "0.75", theirs.runs[1:])
    text = markdown([ours, never], [THEIRS])
    assert "| 0.75 | 2 of 2 seeds | 10 (5 to 15) | 10,000 (5,000 to 15,000) | 20 (10 to 30) | – | " in text
    assert "| 0.75 | 0 of 1 seeds | not reached in 40 epochs | – | – | – | – |" in text
    assert "| 1 of 2 seeds, others not reached in 40 epochs | 20 | 20,000 | 40 | – | – |" in markdown(
        [theirs], [THEIRS]
    )
    assert "| less than 0.38 |" in text  # of seed 1, which both have


def test_the_plot_has_a_line_and_the_seeds_range_for_each_method() -> None:
    ours, theirs = lines()
    tracks = [a_track(OURS, 0, [0.7, 0.8, 0.9]), a_track(OURS, 1, [0.5, 0.6, 0.9]), a_track(THEIRS, 0, [0.5, 0.5, 0.5])]
    text = plot([ours, theirs], tracks)
    assert text.count("<polygon") == text.count("<polyline") == 2
    assert text.count("stroke-dasharray") == 1
    corners = text.split('<polygon points="')[1].split('"')[0].split()
    assert len(corners) == 6 and corners[2] == corners[3]  # both seeds end alike


def test_the_plan_takes_our_recipe_from_the_parameters_and_looks_at_no_held_out_caption() -> None:
    plan = load_plan(PLAN)
    base = preset("world", {"train_rtdmd": {"weights": {"matching": 0.321}}})
    params = run_params(base, plan, OURS, 3)
    changed = {"watch": base.train_rtdmd.watch}
    assert params.train_rtdmd.model_copy(update=changed) == base.train_rtdmd
    published = run_params(base, plan, THEIRS, 3).train_rtdmd
    assert published.generator_optimizer == base.train_rtdmd.generator_optimizer
    assert (published.lr_decay_fraction, published.density, published.recipe) == (0.0, "published", THEIRS)
    for same in ("prompts_per_epoch", "group_size", "rewards", "prompts"):
        assert getattr(published, same) == getattr(params.train_rtdmd, same)
    for stage in (params.train_acdmd, params.train_rtdmd):
        sets = params.model_dump(mode="json")["prepare_prompts"]["sets"]
        assert sets[stage.watch.suites[0].prompts] == [{"name": "world", "split": "validation"}]
        assert sets[stage.prompts] == [{"name": "world", "split": "fit"}]
    assert plan.first_seeds(2) == (0, 1) and plan.first_seeds(None) == plan.seeds
    with pytest.raises(UserError, match="--config seeds=six: allowed: 1 to 5"):
        plan.first_seeds("six")
    wrong = plan.model_dump() | {"changes": {"gdmd": {}}}
    with pytest.raises(
        ValueError, match="changes: 'gdmd' is not one of methods; allowed: acdmd-published, rtdmd, rtdmd"
    ):
        SweepPlan.model_validate(wrong)
