"""The harness: what a stage may read, that its outputs appear together or not at all, and where its state lives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_bytes
from rtdmd.config import preset
from rtdmd.config.render import params_text
from rtdmd.pipeline.stage import open_stage, run_folder

DVC = """
stages:
  prepare_prompts:
    cmd: rtdmd prepare_prompts
    params: [run.seed, prepare_prompts]
    outs: [results/prepare_prompts/train.jsonl]
  evaluate:
    cmd: rtdmd evaluate
    deps: [results/prepare_prompts/train.jsonl, data]
    params: [run, evaluate.batch_size]
    outs:
      - results/evaluate/scores.csv
      - results/evaluate/resolved.json: {cache: false}
    metrics:
      - results/evaluate/metrics.json: {cache: false}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(DVC)
    write_params(tmp_path)
    for path, text in {"results/prepare_prompts/train.jsonl": "prompts", "data/a/x": "abc"}.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def write_params(root: Path, **changes: dict) -> None:
    (root / "params.yaml").write_text(params_text(preset("smoke", changes), "test"))


def evaluate(root: Path, text: str = "1") -> Path:
    """Run the little stage; its run folder."""
    with open_stage("evaluate", root) as stage:
        stage.output("scores.csv").write_text(text)
        stage.output("metrics.json").write_text(text)
    return stage.run_dir


def results(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (root / "results/evaluate").iterdir()}


def test_outputs_and_settings_appear_and_are_the_same_again(root: Path) -> None:
    evaluate(root)
    first = results(root)
    assert sorted(first) == ["metrics.json", "resolved.json", "scores.csv"]
    resolved = json.loads(first["resolved.json"])
    assert resolved["params"] == {"run": preset("world").run.model_dump(), "evaluate.batch_size": 12}
    assert resolved["inputs"]["results/prepare_prompts/train.jsonl"] == sha256_bytes(b"prompts")
    assert set(resolved) == {"stage", "params", "inputs", "versions"}
    evaluate(root)
    assert results(root) == first


def test_an_error_leaves_the_former_outputs_whole(root: Path) -> None:
    evaluate(root, "old")
    before = results(root)
    with pytest.raises(ZeroDivisionError), open_stage("evaluate", root) as stage:
        stage.output("scores.csv").write_text("new")
        stage.output("metrics.json").write_text("new")
        raise ZeroDivisionError
    with (
        pytest.raises(UserError, match=r"stage evaluate ended without writing metrics.json"),
        open_stage("evaluate", root) as stage,
    ):
        stage.output("scores.csv").write_text("new")
    assert results(root) == before


def test_only_declared_files_are_read_and_written(root: Path) -> None:
    (root / "other").write_text("")
    with open_stage("evaluate", root) as stage:
        assert stage.input("data/a/x").read_text() == "abc"
        with pytest.raises(UserError, match=r"stage evaluate reads other without declaring it"):
            stage.input("other")
        with pytest.raises(UserError, match=r"stage evaluate reads data/../other without"):
            stage.input("data/../other")
        with pytest.raises(UserError, match=r"data/b: no such file; it belongs to the repository"):
            stage.input("data/b")
        with pytest.raises(UserError, match=r"writes results/evaluate/other without declaring it"):
            stage.output("other")
        with pytest.raises(UserError, match=r"resolved.json is written by the stage harness"):
            stage.output("resolved.json")
        stage.output("scores.csv").write_text("")
        stage.output("metrics.json").write_text("")


def test_a_missing_input_names_the_command_that_makes_it(root: Path) -> None:
    (root / "results/prepare_prompts/train.jsonl").unlink()
    with pytest.raises(UserError, match=r"train.jsonl: no such file; `snakemake prepare_prompts` makes it"):
        evaluate(root)
    (root / "dvc.yaml").write_text(DVC.replace("data]", "data/world/clip]"))
    (root / "results/prepare_prompts/train.jsonl").write_text("")
    with pytest.raises(UserError, match=r"clip: no such file; .*`git checkout data/world/clip`$"):
        evaluate(root)
    with (
        pytest.raises(UserError, match=r"no stage 'evalute'; it has prepare_prompts, evaluate"),
        open_stage("evalute", root),
    ):
        pass


def test_edits_during_the_run_are_caught_and_comments_are_not_edits(root: Path) -> None:
    evaluate(root, "old")
    before = results(root)
    with (
        pytest.raises(UserError, match=r"params.yaml changed during the run \(run\); nothing was written"),
        open_stage("evaluate", root) as stage,
    ):
        stage.output("scores.csv").write_text("")
        stage.output("metrics.json").write_text("")
        write_params(root, run={"seed": 9})
    write_params(root)
    with pytest.raises(UserError, match=r"data changed during the run"), open_stage("evaluate", root) as stage:
        stage.output("scores.csv").write_text("")
        stage.output("metrics.json").write_text("")
        (root / "data/a/x").write_text("abd")
    assert results(root) == before
    with open_stage("evaluate", root) as stage:
        stage.output("scores.csv").write_text("new")
        stage.output("metrics.json").write_text("new")
        write_params(root, train_acdmd={"fake_optimizer": {"lr": 1.0}})  # another stage's
        with (root / "params.yaml").open("a") as file:
            file.write("# a comment\n")
    assert results(root)["scores.csv"] == "new"


def test_code_edited_during_the_run_is_caught_and_an_editors_file_is_no_code(root: Path) -> None:
    """DVC would record the new code's hash for results that the old code made."""
    (root / "dvc.yaml").write_text(DVC.replace("data]", "data, rtdmd/evaluate, rtdmd/one.py]"))
    for path in ("rtdmd/evaluate/intervals.py", "rtdmd/one.py"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("WIDTH = 1.96\n")
    first = evaluate(root, "old")
    before = results(root)
    for path, named in (("rtdmd/evaluate/intervals.py", "rtdmd/evaluate"), ("rtdmd/one.py", "rtdmd/one.py")):
        with (
            pytest.raises(UserError, match=rf"^{named} changed during the run; nothing was written, run evaluate"),
            open_stage("evaluate", root) as stage,
        ):
            stage.output("scores.csv").write_text("")
            stage.output("metrics.json").write_text("")
            (root / path).write_text("WIDTH = 2.0\n")
        (root / path).write_text("WIDTH = 1.96\n")
    assert results(root) == before
    with open_stage("evaluate", root) as stage:
        stage.output("scores.csv").write_text("new")
        stage.output("metrics.json").write_text("new")
        (root / "rtdmd/evaluate/.#intervals.py").symlink_to("somebody@somewhere.1:2")
        (root / "rtdmd/evaluate/.intervals.py.swp").write_text("open in vim")
    assert results(root)["scores.csv"] == "new"
    assert evaluate(root) == first  # a training goes on from its checkpoint


def test_run_folder_follows_parameters_and_inputs_only(root: Path) -> None:
    first = evaluate(root)
    assert first == run_folder(root, "evaluate", json.loads(results(root)["resolved.json"]))
    (first / "state").write_text("kept")
    write_params(root, train_acdmd={"fake_optimizer": {"lr": 1.0}})
    assert evaluate(root) == first
    assert (first / "state").read_text() == "kept"
    write_params(root, evaluate={"batch_size": 3})
    second = evaluate(root)
    (root / "data/a/x").write_text("changed")
    assert len({first, second, evaluate(root)}) == 3


def test_the_same_stage_runs_once_at_a_time(root: Path) -> None:
    with open_stage("evaluate", root) as stage:
        stage.output("scores.csv").write_text("")
        stage.output("metrics.json").write_text("")
        with pytest.raises(UserError, match=r"stage evaluate is already running in"):
            evaluate(root)


@pytest.mark.parametrize("what", ["a link", "a folder", "a pipe"])
def test_a_lock_that_is_no_file_of_ours_is_left_alone(root: Path, what: str) -> None:
    lock, thesis = root / ".rtdmd/locks/evaluate", root / "thesis.tex"
    lock.parent.mkdir(parents=True)
    thesis.write_text("three years of work")
    if what == "a link":
        lock.symlink_to(thesis)
    elif what == "a folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    with pytest.raises(UserError, match=rf"^{lock}: no file to lock \(.*\); `rm -r {lock}` removes it$"):
        evaluate(root)
    assert thesis.read_text() == "three years of work"
    subprocess.run(["rm", "-r", lock], check=True)
    evaluate(root)
    assert thesis.read_text() == "three years of work" and lock.is_file()


def test_what_stands_in_the_place_of_a_partial_result_goes_and_what_it_points_to_stays(root: Path) -> None:
    evaluate(root)
    kept = root / "elsewhere"
    kept.mkdir()
    (kept / "x").write_text("kept")
    (root / "results/evaluate/.partial-link").symlink_to(kept)
    (root / "results/evaluate/.partial-file").write_text("left over")
    evaluate(root)
    assert sorted(results(root)) == ["metrics.json", "resolved.json", "scores.csv"]
    assert (kept / "x").read_text() == "kept"


def test_a_killed_run_leaves_nothing_behind(root: Path) -> None:
    program = (
        "import os, pathlib, sys; from rtdmd.pipeline.stage import open_stage\n"
        "with open_stage('evaluate', pathlib.Path(sys.argv[1])) as stage:\n"
        "    stage.output('scores.csv').write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(root)], check=False).returncode == -9
    assert not (root / "results/evaluate/scores.csv").exists()
    evaluate(root)
    assert sorted(results(root)) == ["metrics.json", "resolved.json", "scores.csv"]
