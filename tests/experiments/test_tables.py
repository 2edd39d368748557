"""The tables as data: published figures, and runs whose parameters say what their names say."""

from __future__ import annotations

import os
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest

from rtdmd import cli
from rtdmd.common.errors import UserError
from rtdmd.config import Params, parse_params, preset
from rtdmd.config.results import ModelName
from rtdmd.experiments import RUNS, TABLES, find_run, find_table
from rtdmd.experiments.queue import queue_lines
from rtdmd.experiments.settings import LOCAL, Local, all_params, load_local, models_of, run_params
from rtdmd.pipeline.model_inputs import groups_of_run, require_pins
from rtdmd.pipeline.to_fill_in import commits_to_fill_in
from rtdmd.published.table import Column, Row, Run, Table
from rtdmd.study.paper import GAMMA, STAGE_TWO

COMMIT = "a" * 40
NOTHING = Local(params={}, presets={}, scorers={}, sources={}, suites={}, checkpoints={})


@pytest.fixture(scope="module")
def params() -> dict[str, Params]:
    """Of every run, as published."""
    return all_params(NOTHING)


def figures(table: str) -> dict[str, tuple[Decimal | None, ...]]:
    found = TABLES[table]
    return {row.title: found.published(row) for row in found.rows}


def test_every_published_table_is_there() -> None:
    assert set(TABLES) == {"table_1", "table_2", "table_3", "table_4", "geneval", "eta", "flux1_dev", "checkpoints"}
    sizes = {name: (len(table.rows), len(table.columns)) for name, table in TABLES.items()}
    assert sizes == {
        "table_1": (4, 5),
        "table_2": (10, 9),
        "table_3": (5, 3),
        "table_4": (7, 3),
        "geneval": (6, 7),
        "eta": (6, 3),
        "flux1_dev": (3, 9),
        "checkpoints": (4, 3),
    }


def test_the_ablations_have_the_figures_that_the_comparisons_page_shows() -> None:
    """rtdmd/study/paper.py has them by the names of the methods."""
    gamma = {"γ = 0": "admd", "γ = 0.01": "acdmd"}
    for title, own in figures("table_3").items():
        name = gamma.get(title, f"acdmd-{title.removeprefix('γ = ')}")
        assert tuple(map(float, filter(None, own))) == GAMMA[name], title
    ours = {title: own for title, own in figures("table_4").items() if "checkpoint" not in title}
    for (title, own), (name, theirs) in zip(ours.items(), STAGE_TWO.items(), strict=True):
        assert tuple(map(float, filter(None, own))) == theirs, (title, name)


def test_figures_keep_the_digits_that_they_are_printed_with() -> None:
    first = TABLES["table_1"].published(TABLES["table_1"].rows[0])
    assert [str(figure) for figure in first] == ["0.2936", "5.5711", "22.3236", "0.2810", "1.0759"]
    assert TABLES["eta"].published(TABLES["eta"].rows[0]) == (None, None, None)


def test_every_column_is_measured_by_every_run_of_its_table(params: dict[str, Params]) -> None:
    for name, table in TABLES.items():
        for row in table.rows:
            if row.run is None:
                continue
            evaluate = params[row.run.name].evaluate
            assert row.model in evaluate.models, (name, row.title)
            suites = {suite.name: suite for suite in evaluate.suites}
            for column in table.columns:
                scorers = {reward.name for reward in suites[column.suite].scorers(evaluate.rewards)}
                assert column.score in scorers, (name, column.title)
            assert {suite.resolution for suite in evaluate.suites} == {1024}


def test_a_run_differs_from_its_preset_in_what_its_name_says_alone(params: dict[str, Params]) -> None:
    """Beside evaluation and its prompts."""
    for name, run in RUNS.items():
        own, base = params[name], preset(run.preset)
        differs = {
            section
            for section in ("run", "model", "adapter", "cache_teacher", "train_acdmd", "train_rtdmd")
            if getattr(own, section) != getattr(base, section)
        }
        kind = name.removeprefix("sd35m-").split("-")[0]
        allowed = {"consistency": {"train_acdmd", "train_rtdmd"}, "eta": {"model"}, "flux2": {"model"}}
        assert differs <= (allowed.get(kind, {"train_rtdmd"}) if run.changed else set()), name


def test_the_changed_settings(params: dict[str, Params]) -> None:
    for weight in (0.0, 0.001, 0.005, 0.1):
        own = params[f"sd35m-consistency-{weight:g}"]
        assert own.train_acdmd.consistency.weight == own.train_rtdmd.consistency.weight == weight
    assert {eta: params[f"sd35m-eta-{eta:g}"].model.eta for eta in (0.2, 0.4, 0.6, 0.8, 1.0)} == {
        eta: eta for eta in (0.2, 0.4, 0.6, 0.8, 1.0)
    }
    alone = params["geneval-sd35m"].train_rtdmd
    assert [reward.name for reward in alone.rewards] == ["geneval"] and alone.weights.backprop == 0.0
    steps = {name: params[f"sd35m-{name}"].train_rtdmd for name in ("grpo", "subgrpo-1", "subgrpo-1-last", "subgrpo-2")}
    assert {name: own.trained_steps for name, own in steps.items()} == {
        "grpo": 3,
        "subgrpo-1": 1,
        "subgrpo-1-last": 1,
        "subgrpo-2": 2,
    }
    assert {name: own.weights.matching for name, own in steps.items()} == {
        "grpo": 0.0,
        "subgrpo-1": 0.0,
        "subgrpo-1-last": 1e-3,
        "subgrpo-2": 0.0,
    }
    assert params["sd35m"].train_rtdmd.trained_steps == 2
    assert params["sd3m-gdmd"].train_rtdmd.recipe == "gdmd"


def test_teachers_and_released_models_of_table_2_train_nothing(params: dict[str, Params]) -> None:
    assert params["flux2-klein-9b-released"].evaluate.models == ("teacher", "student_base")
    assert params["flux2-klein-4b"].evaluate.models == ("teacher", "student_base", "train_rtdmd")
    assert {suite.name for suite in params["flux2-klein-4b"].evaluate.suites} == {
        "drawbench",
        "hpsv3",
        "geneval",
        "geneval2",
        "ocr",
    }


def test_a_student_on_the_teachers_base_has_no_released_model() -> None:
    with pytest.raises(UserError, match=r"evaluate\.models: student_base with model\.student: null"):
        preset("sd35m", {"evaluate": {"models": ["student_base"], "etas": []}})


def test_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"^table 'table_9' is unknown; allowed: checkpoints, eta, flux1_dev, geneval, table_1"
    ):
        find_table("table_9")
    with pytest.raises(UserError, match=r"^experiment 'sd35m-grp' is unknown; .*; did you mean sd35m-grpo\?$"):
        find_run("sd35m-grp")


def test_a_table_that_does_not_fit_names_its_row() -> None:
    column = Column("CLIPScore", "drawbench", "clipscore")
    with pytest.raises(UserError, match=r"^T, teacher: 2 figures for 1 columns$"):
        Table("T", "s", (column,), (Row("teacher", 4, "0.1 0.2", missing="no"),))
    with pytest.raises(UserError, match=r"^T, teacher: a row has a run, or says in `missing` why it has none$"):
        Table("T", "s", (column,), (Row("teacher", 4, "0.1"),))


def test_params_prints_a_runs_whole_file(params: dict[str, Params], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["params", "--experiment", "geneval-sd35m"]) == 0
    text = capsys.readouterr().out
    assert parse_params(text) == params["geneval-sd35m"]
    assert text.startswith("# Generated by `rtdmd params --experiment geneval-sd35m`")
    assert cli.main(["params", "--experiment", "geneval"]) == 2
    assert "experiment 'geneval' is unknown; allowed: " in capsys.readouterr().err
    assert cli.main(["params"]) == 2
    assert "params: name one of world, smoke, " in capsys.readouterr().err


def test_a_run_asks_for_the_commits_of_the_models_that_it_needs(
    params: dict[str, Params], capsys: pytest.CaptureFixture[str]
) -> None:
    """By repository; of a run that trains nothing, none of what only looks at a student while it trains."""
    found = {name: commits_to_fill_in(params[name]) for name in ("sd35m-checkpoint", "sd35m")}
    own = {
        "stabilityai/stable-diffusion-3.5-medium": ["model.revision"],
        "openai/clip-vit-large-patch14": ["clipscore: revision", "geneval: colour_revision"],
        "yuvalkirstain/PickScore_v1": ["pickscore: revision"],
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ["pickscore: base_revision", "hpsv2: base_revision"],
        "xswu/HPSv2": ["hpsv2: revision"],
        "facebook/mask2former-swin-small-coco-instance": ["geneval: revision"],
    }
    assert found["sd35m-checkpoint"] == own
    assert found["sd35m"].keys() - own.keys() == {
        "zai-org/ImageReward",
        "google-bert/bert-base-uncased",
        "MizzenAI/HPSv3",
        "Qwen/Qwen2-VL-7B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct",
    }
    assert cli.main(["params", "--experiment", "sd35m-checkpoint"]) == 0
    head = capsys.readouterr().out.partition("\n\n")[0].splitlines()
    lines = [f"#   {repository}: {', '.join(settings)}" for repository, settings in own.items()]
    assert head[-7:] == [*lines, "#   Harahan/SD35M-RTDMD: checkpoints: sd35m-checkpoint: revision"]


def test_pins_of_a_checkpoints_evaluation_are_enough(params: dict[str, Params]) -> None:
    scorers: dict[str, dict[str, str]] = {}
    for settings in commits_to_fill_in(params["sd35m-checkpoint"]).values():
        for name, key in (setting.split(": ") for setting in settings if setting != "model.revision"):
            scorers.setdefault(name, {})[key] = COMMIT
    model = {"sd35m": {"model": {"revision": COMMIT}}}
    local = NOTHING.model_copy(update={"scorers": scorers, "presets": model})
    pinned = {name: run_params(find_run(name), local) for name in ("sd35m-checkpoint", "sd35m")}
    require_pins(pinned["sd35m-checkpoint"], groups_of_run(pinned["sd35m-checkpoint"]))
    with pytest.raises(
        UserError, match=r"^train_acdmd\.watch\.rewards: aesthetic: base_revision: still the placeholder"
    ):
        require_pins(pinned["sd35m"], groups_of_run(pinned["sd35m"]))


def test_the_list_has_every_figure_run_and_what_cannot_be_stated(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["experiments"]) == 0
    text = capsys.readouterr().out
    for table in TABLES.values():
        assert all(figure in text for row in table.rows for figure in row.figures.split())
    assert all(f"run {name}: " in text for name in RUNS)
    assert text.count("missing, Z-Image") == 3 and "missing, R_dm: known from its abstract alone" in text
    assert cli.main(["experiments", "table_4", "--queue"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rtdmd experiments --write sd35m && dvc exp run --queue --name sd35m evaluate"
    assert len(lines) == 9 and lines[-3:-1] == ["git checkout params.yaml dvc.yaml", "dvc exp run --run-all"]
    assert lines[-1] == (
        r"dvc exp show --hide-workspace --drop '.*' --keep '(Experiment|train_acdmd\.recipe|train_rtdmd\.recipe"
        r"|suites\.drawbench\.[^.]+\.clipscore\.mean|suites\.drawbench\.[^.]+\.pickscore\.mean"
        r"|suites\.drawbench\.[^.]+\.hpsv2\.mean)$'"
    )


def test_dvcs_table_has_the_tables_figures_and_what_its_runs_change() -> None:
    *_, line = queue_lines(["geneval", "eta"])
    kept = re.compile(line.partition("--keep '")[2].removesuffix("'"))
    shown = (
        "Experiment",
        "model.eta",
        "train_rtdmd.weights.backprop",
        "suites.geneval.train_rtdmd.geneval.mean",
        "suites.drawbench.imported.pickscore.mean",
    )
    hidden = (
        "Created",
        "run.seed",
        "suites.drawbench.imported.pickscore.ci95",
        "suites.geneval.train_rtdmd.per_tag.geneval.counting.mean",
        "suites.heldout.teacher.strict.mean",
    )
    assert [name for name in (*shown, *hidden) if kept.match(name)] == list(shown)


def test_keys_of_sources_are_given_by_the_set(tmp_path: Path) -> None:
    """Both sets of geneval have a source of its name."""
    path = tmp_path / LOCAL
    path.parent.mkdir()
    path.write_text(
        "{params: {}, presets: {}, scorers: {}, suites: {}, sources: {geneval_train: {path: data/prompts/t.jsonl}},"
        " checkpoints: {}}"
    )
    sets = run_params(RUNS["geneval-sd35m"], load_local(tmp_path)).prepare_prompts.sets
    found = {
        name: [(source.name, source.model_dump()["path"]) for source in sets[name]]
        for name in ("geneval_train", "geneval")
    }
    assert found == {
        "geneval_train": [("geneval", "data/prompts/t.jsonl")],
        "geneval": [("geneval", "data/prompts/geneval.jsonl")],
    }
    path.write_text("{params: {}, presets: {}, scorers: {}, suites: {}, sources: {geneval_tran: {}}, checkpoints: {}}")
    with pytest.raises(
        UserError, match=r"experiments\.yaml: sources: no set of prompts is named 'geneval_tran'; allowed"
    ):
        load_local(tmp_path)


def test_a_row_may_be_any_model_of_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    names: tuple[ModelName, ...] = get_args(ModelName)
    run = Run("any", "sd35m", "a run")
    column = Column("CLIPScore", "drawbench", "clipscore")
    rows = tuple(Row(name, 4, "0.1", run, model=name) for name in reversed(names))
    monkeypatch.setitem(TABLES, "any", Table("T", "s", (column,), rows))
    assert models_of(run) == names
    assert {"teacher_few_step", "imported"} < set(names)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["experiments", "table_4", "--queue"], 0),  # short: all was said before the reader was missed
        (["params", "sd35m"], 141),
        (["experiments", "table_9"], 2),
    ],
)
def test_a_command_whose_reader_ended_ends_quietly(
    command: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(command) == code
        monkeypatch.undo()
    assert "Broken" not in capsys.readouterr().err


def test_another_pipe_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise BrokenPipeError("a worker ended")

    monkeypatch.setattr("rtdmd.commands.experiments.run", fail)
    with (tmp_path / "out").open("w") as out, pytest.raises(BrokenPipeError, match="a worker ended"):
        monkeypatch.setattr(sys, "stdout", out)
        cli.main(["experiments"])
