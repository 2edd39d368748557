"""The sweep on the tiny teacher: shared stage one, equal budgets, resumed runs, students over time, table and page."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rtdmd.commands import methods as methods_command
from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, read_json
from rtdmd.config import Params
from rtdmd.evaluate.divergence import divergence
from rtdmd.evaluate.parses import read_parses
from rtdmd.plan.budget import cost, update_counts
from rtdmd.stages import train_rtdmd
from rtdmd.study import history
from rtdmd.study.gather import gather
from rtdmd.study.page import panels, write_comparison
from rtdmd.study.plan import Budgets, SweepPlan, TimeToReward, run_folder, run_params
from rtdmd.study.run import run
from rtdmd.study.variance_table import HEADER
from tests.train.workshop import make_trainable
from tests.workspace import set_params

PLAN = SweepPlan(
    folder=".rtdmd/sweep",
    page="results/comparison",
    seeds=(0, 1),
    budget=Budgets(train_acdmd=1.0, train_rtdmd=1.0),
    shares={},
    points=2,
    point_images=2,
    params={
        "evaluate": {"etas": []},
        "train_acdmd": {"watch": {"every": 2, "max_prompts": 6}},
        "train_rtdmd": {"watch": {"every": 2, "max_prompts": 6}},
    },
    methods=("dmd2-last", "matching-only", "dmd-nft"),
    time_to_reward=TimeToReward(suite="heldout", levels=(0.0, 1.0), against=("dmd2-last", "matching-only")),
)
SMALL: dict[str, Any] = {
    "train_rtdmd": {"epochs": 4, "rewards": [{"name": "clipscore", "model": "data/world/clip", "weight": 1.0}]},
}


@pytest.fixture(scope="module")
def base(tiny_teacher: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    """A repository folder with smoke parameters, without any run."""
    root = tmp_path_factory.mktemp("sweep")
    make_trainable(root, tiny_teacher, tiny_clip)
    shutil.rmtree(root / "results")
    return root, set_params(root, SMALL)


@pytest.fixture(scope="module")
def swept(base: tuple[Path, Params]) -> tuple[Path, Params]:
    """The same after the runs of seed 0 and the base of seed 1."""
    root, params = base
    for name in PLAN.runs():
        if name == "teacher":
            continue
        run(root, params, PLAN, name, 0)
    return root, params


def test_a_method_waits_for_its_seeds_base_run(base: tuple[Path, Params]) -> None:
    with pytest.raises(UserError, match="run base of seed 1 is not done; `rtdmd sweep run base 1` comes first"):
        run(*base, PLAN, "matching-only", 1)


def test_methods_share_prompts_text_and_stage_one_of_their_seed(swept: tuple[Path, Params]) -> None:
    root, _ = swept
    mother = run_folder(root, PLAN, "base", 0)
    for name, shared in (("matching-only", True), ("dmd2-last", False)):
        folder = run_folder(root, PLAN, name, 0)
        for stage in ("prepare_prompts", "cache_teacher"):
            assert (folder / "results" / stage).resolve() == (mother / "results" / stage).resolve()
        same = (folder / "results/train_acdmd").resolve() == (mother / "results/train_acdmd").resolve()
        assert same == shared
    made = {path.name for path in (run_folder(root, PLAN, "matching-only", 0) / "results/evaluate").glob("grid_*")}
    assert made == {"grid_train_rtdmd.png"}


def test_every_run_spends_the_base_params_budget(swept: tuple[Path, Params]) -> None:
    root, params = swept
    found = {name: read_json(run_folder(root, PLAN, name, 0) / "run.json") for name in PLAN.runs() if name != "teacher"}
    for name, stage in (("dmd2-last", "train_acdmd"), ("matching-only", "train_rtdmd"), ("dmd-nft", "train_rtdmd")):
        record = found[name]
        assert abs(record["planned"] - cost(params, stage)) <= record["unit"] / 2 * (1 + 1e-9)
        assert record["planned"] / record["unit"] == pytest.approx(record["length"])
        assert record["seconds"][stage] > 0 and record["seconds"]["evaluate"] > 0
    assert run_params(params, PLAN, "dmd-nft", 1).run.seed == 1


def test_students_over_time_are_the_checkpoints_averages(swept: tuple[Path, Params]) -> None:
    """The last point's student is the run's own output, to the bit; an earlier one is another."""
    root, _ = swept
    folder = run_folder(root, PLAN, "dmd-nft", 0)
    record = read_json(folder / "run.json")
    epochs = [int(point["epoch"]) for point in record["history"]]
    assert len(epochs) == 2 and epochs[-1] == record["length"]
    students = [
        load_tensors(folder / f"at-{epoch:05d}/results/train_rtdmd/generator.safetensors")[0] for epoch in epochs
    ]
    own, _ = load_tensors(folder / "results/train_rtdmd/generator.safetensors")
    assert all(bool((students[-1][name] == value).all()) for name, value in own.items())
    assert any(bool((students[0][name] != value).any()) for name, value in own.items())
    assert all({"strict", "clipscore", "frechet", "diversity"} <= set(point) for point in record["history"])


def test_a_finished_run_is_not_run_again_and_a_changed_one_is(
    swept: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, params = swept
    called: list[str] = []

    def ends(path: Path) -> None:
        called.append(path.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_rtdmd, "run", ends)
    before = (run_folder(root, PLAN, "matching-only", 0) / "run.json").read_bytes()
    assert run(root, params, PLAN, "matching-only", 0).read_bytes() == before and called == []
    twice = PLAN.model_copy(update={"budget": Budgets(train_acdmd=2.0, train_rtdmd=2.0)})
    with pytest.raises(KeyboardInterrupt):
        run(root, params, twice, "matching-only", 0)
    assert called == ["matching-only-0"]
    monkeypatch.undo()
    assert history.checkpoints(run_folder(root, PLAN, "dmd-nft", 0), run_params(params, PLAN, "dmd-nft", 0))


def test_where_an_earlier_student_was_kept_the_last_one_stands_for_the_run(
    swept: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that another epoch was kept, the run's last student, here the kept one, is judged alike; told the truth
    again, there is but one."""
    root, params = swept
    folder = run_folder(root, PLAN, "matching-only", 0)
    for module in ("history", "run"):
        monkeypatch.setattr(f"rtdmd.study.{module}.chosen_epoch", lambda folder: 1)
    run(root, params, PLAN, "matching-only", 0)
    ours = {row.name: row for row in gather(root, PLAN)}["matching-only"].runs[0]
    last = folder / "last/results/evaluate"
    assert ours.record["chosen"] == 1 and last.is_dir() and ours.figures == ours.kept
    assert (last / "scores.csv").read_bytes() == (folder / "results/evaluate/scores.csv").read_bytes()
    (last / "metrics.json").write_text((last / "metrics.json").read_text().replace('"frechet": ', '"frechet": 1'))
    ours = {row.name: row for row in gather(root, PLAN)}["matching-only"].runs[0]
    assert ours.figures["frechet"] > ours.kept["frechet"]
    monkeypatch.undo()
    run(root, params, PLAN, "matching-only", 0)
    assert not last.exists()


def test_table_and_page_hold_every_run(swept: tuple[Path, Params], capsys: pytest.CaptureFixture[str]) -> None:
    root, params = swept
    page = write_comparison(root, PLAN, params)
    with (root / "results/comparison/table.csv").open(newline="") as file:
        lines = {line["run"]: line for line in csv.DictReader(file)}
    assert set(lines) == {"base", *PLAN.methods}
    rows = {row.name: row for row in gather(root, PLAN)}
    for name, line in lines.items():
        metrics = read_json(run_folder(root, PLAN, name, 0) / "results/evaluate/metrics.json")
        model = "train_rtdmd" if rows[name].stage == "train_rtdmd" else "train_acdmd"
        assert float(line["clipscore"]) == pytest.approx(
            metrics["suites"]["heldout"][model]["clipscore"]["mean"], rel=1e-5
        )
        assert line["clipscore_ci95_seeds"] == "" and line["seeds"] == "1"
    own = rows["dmd-nft"].minus["base"]["strict"].mean
    assert own == pytest.approx(rows["dmd-nft"].figures["strict"].mean - rows["base"].figures["strict"].mean, abs=1e-6)
    farther = rows["dmd-nft"].figures["frechet"].mean - rows["base"].figures["frechet"].mean
    assert float(lines["dmd-nft"]["frechet_minus_base"]) == pytest.approx(farther, rel=1e-5)
    assert lines["dmd-nft"]["frechet_minus_base_ci95_noise"] == ""  # no mean over images
    text = page.read_text()
    assert "Flash-DMD" in text and "DMD2, last step only" in text and "held-out strict" in text
    assert "Noise and bias" not in text
    table = page.parent / "variance.csv"
    table.write_text("\n".join([",".join(HEADER), "whole <chain>,7,99.6,1234.5,0.25,0.5,0.1,0,0.1,1,0.2"]))
    text = write_comparison(root, PLAN, params).read_text()
    assert "Noise and bias" in text and "whole &lt;chain&gt;" in text and "1234.50 ± 0.25" in text
    assert ">4.94e+03<" in text  # at scale 1
    table.write_text("estimator,prompts\nx,1\n")
    with pytest.raises(UserError, match=r"variance\.csv: no table of this version's `rtdmd variance`"):
        write_comparison(root, PLAN, params)
    table.unlink()
    assert (root / "results/comparison/contact_sheet.png").stat().st_size > 1000

    shown = methods_command.own_figures(root / methods_command.TABLE, "dmd-nft")
    assert shown[0] == "stage: train_rtdmd"
    (gap,) = [line for line in shown if line.startswith("strict_minus_base")]
    assert gap.endswith("(95 %, images)") and gap.count("±") == 1  # one seed has no interval over seeds


def test_grids_stand_in_panels_with_the_first_at_the_left() -> None:
    """Six others in panels of four: two panels of three others."""
    tones = [Image.new("RGB", (40, 30), (value, 0, 0)) for value in (10, 20, 30, 40, 50, 60, 70)]
    first, *others = ((f"{i}\nnote", tone) for i, tone in enumerate(tones))
    one, two, whole = (
        panels(["p"], first, others[:3], 4),
        panels(["p"], first, others[3:], 4),
        panels(["p"], first, others, 4),
    )
    assert whole.width == one.width and whole.height == one.height + two.height + 24
    assert np.array_equal(np.asarray(whole)[: one.height], np.asarray(one))
    assert np.array_equal(np.asarray(whole)[-two.height :], np.asarray(two))
    reds = [
        [int(red) for red in sorted(set(np.asarray(part)[-5, :, 0])) if red in range(10, 80)] for part in (one, two)
    ]
    assert reds == [[10, 20, 30, 40], [10, 50, 60, 70]]
    assert panels(["p"], first, [], 4).width < one.width


def test_a_partial_sweep_is_gathered(swept: tuple[Path, Params], tmp_path: Path) -> None:
    """A method whose seed the base lacks at first, and no control: no grid, no reference, no error."""
    root, params = swept
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    copy, plan = tmp_path / "copy", PLAN.model_copy(update={"seeds": (1, 0)})
    run_folder(copy, plan, "dmd-nft", 0).rename(run_folder(copy, plan, "dmd-nft", 1))
    shutil.rmtree(run_folder(copy, plan, "matching-only", 0), ignore_errors=True)
    text = write_comparison(copy, plan, params).read_text()
    assert "matching and DiffusionNFT" in text and "– over" not in text


def test_every_method_has_its_place_beside_the_optimum_once_the_teacher_is_judged(
    swept: tuple[Path, Params], tmp_path: Path
) -> None:
    """Only the teacher's run draws the distribution; divergence and excess are columns; the students over time are a
    path."""
    root, params = swept
    assert all(run.divergence is None for row in gather(root, PLAN) for run in row.runs)
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    copy = tmp_path / "copy"
    run(copy, params, PLAN, "teacher", 0)
    distributions = {
        name: run_params(params, PLAN, name, 0).evaluate.suites[0].teacher_images for name in ("teacher", "base")
    }
    assert distributions == {"teacher": 24, "base": None}
    rows = {row.name: row for row in gather(copy, PLAN)}
    own = rows["dmd-nft"].runs[0]
    folder = run_folder(copy, PLAN, "dmd-nft", 0) / "results/evaluate/parses.csv"
    distribution = read_parses(
        run_folder(copy, PLAN, "teacher", 0) / "results/evaluate/parses.csv", "heldout", "teacher_law"
    )
    assert len(distribution) == 24
    assert own.divergence == divergence(read_parses(folder, "heldout", "train_rtdmd"), distribution, 0)
    assert [point["epoch"] for point in own.path] == [int(point["epoch"]) for point in own.record["history"]]
    assert own.path[-1]["reward"] == own.record["history"][-1]["strict"]
    assert rows["dmd-nft"].figures["excess"].mean == own.divergence["excess"]["mean"]
    gap = own.divergence["excess"]["mean"] - rows["base"].runs[0].divergence["excess"]["mean"]
    assert rows["dmd-nft"].minus["base"]["excess"].mean == pytest.approx(gap)
    page = write_comparison(copy, PLAN, params)
    text = page.read_text()
    assert "Stage two: reward against divergence" in text and ">Excess divergence</th>" in text
    with (page.parent / "table.csv").open(newline="") as file:
        lines = {line["run"]: line for line in csv.DictReader(file)}
    for figure in ("strict", "diversity", "clutter", "kl", "excess"):
        assert float(lines["teacher"][figure]) == pytest.approx(rows["teacher"].figures[figure].mean, rel=1e-5)
    assert float(lines["dmd-nft"]["seconds"]) > 0
    assert rows["dmd-nft"].figures["kl"].mean == own.divergence["kl"]["mean"]


def test_the_looks_of_the_runs_say_when_a_level_was_reached(swept: tuple[Path, Params], tmp_path: Path) -> None:
    """A strict score of 0 is there at the start for nothing, and 1 is out of the tiny student's reach; without a judged
    teacher stage one has no level."""
    root, params = swept
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    out = write_comparison(tmp_path / "copy", PLAN, params).parent
    with (out / "time_runs.csv").open(newline="") as file:
        lines = {(line["run"], line["level"]): line for line in csv.DictReader(file)}
    assert set(lines) == {(name, level) for name in ("matching-only", "dmd-nft") for level in ("0", "1")}
    for name in ("matching-only", "dmd-nft"):
        assert (lines[name, "0"]["passes"], lines[name, "1"]["passes"]) == ("0", "")
        length = read_json(run_folder(root, PLAN, name, 0) / "run.json")["length"]
        settings = run_params(params, PLAN, name, 0)
        whole = (length // 2 * 2) * sum(update_counts(settings, "train_rtdmd"))  # up to the last evaluation
        assert float(lines[name, "1"]["last_passes"]) == pytest.approx(whole)
    with (out / "time_curves.csv").open(newline="") as file:
        updates = [int(line["updates"]) for line in csv.DictReader(file) if line["run"] == "base"]
    assert updates == [0, 2, 4]
    assert "Time to reward" in (out / "index.html").read_text()
    assert "not reached in" in (out / "time_to_reward.md").read_text()
