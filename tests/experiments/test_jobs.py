"""Smoke versions of the tables through the workflow's own code: tiny models, what is shared, published beside ours."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

import pytest

from rtdmd import cli
from rtdmd.commands import import_checkpoint
from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import load_tensors, read_json
from rtdmd.config import load_params
from rtdmd.config.load import validate
from rtdmd.config.presets import merged
from rtdmd.experiments import RUNS, TABLES
from rtdmd.experiments.cost import cost_text
from rtdmd.experiments.jobs import ASKED, METRICS, Job, Jobs, stages_of
from rtdmd.experiments.page import write_table
from rtdmd.experiments.settings import LOCAL
from rtdmd.experiments.text import check_text
from rtdmd.pipeline.declared import check_models
from rtdmd.pipeline.dvc_yaml import read_pipeline
from rtdmd.report.published import cells_table
from rtdmd.rewards.geneval_detector import Detector
from rtdmd.stages import report
from tests.experiments.conftest import commit
from tests.publish.exports import gate_in_process, write_public_checkpoint
from tests.workspace import REPOSITORY

LEFT_OUT = {
    "table_3": ("γ = 0.001", "γ = 0.005", "γ = 0.1"),
    "table_4": ("SubGRPO, M = 1", "SubGRPO, M = 1, last step", "SubGRPO, M = 2"),
    "flux1_dev": ("FLUX.1-dev teacher, guided", "RTDMD"),
    "eta": ("η = 0.2", "η = 0.4", "η = 0.6", "η = 0.8"),
}
"""Rows that go the way of another of their table."""


def jobs_of(jobs: Jobs, name: str) -> list[Job]:
    """All jobs of a table as Snakemake would run them: what a job reads before it, each once."""
    found: dict[Job, None] = {}

    def add(job: Job) -> None:
        for before in jobs.reads(*job):
            add(before)
        found[job] = None

    for job in jobs.of_table(name):
        add(job)
    return list(found)


def checkpoint_files(jobs: Jobs, run: str) -> list[Path]:
    """Where workflow/experiments.yaml says that the files of a published checkpoint are."""
    checkpoint = RUNS[run].checkpoint
    assert checkpoint is not None
    return [jobs.root / str(jobs.local.checkpoints[run].path) / file for file in checkpoint.files]


def moved_to(root: Path, jobs: Jobs) -> Jobs:
    """The same runs in another folder; what is known of them is not worked out again."""
    moved = Jobs(root, jobs.local)
    moved.__dict__ |= {"params": jobs.params, "owners": jobs.owners, "keys": jobs.keys}
    return moved


@pytest.fixture(scope="module", autouse=True)
def fewer(tiny_jobs: Jobs) -> Iterator[None]:
    """The tables with the rows that are run here; the runs' parameters are those of the whole tables."""
    assert tiny_jobs.params.keys() == RUNS.keys()
    with pytest.MonkeyPatch.context() as patch:
        for name, titles in LEFT_OUT.items():
            rows = tuple(row for row in TABLES[name].rows if row.title not in titles)
            patch.setitem(TABLES, name, replace(TABLES[name], rows=rows))
        yield


@pytest.fixture(scope="module")
def finished(tiny_jobs: Jobs) -> Jobs:
    """All tables, run; a job that two tables have is run once. The detector sees small pictures: 800 pixels would be
    most of the time."""
    with pytest.MonkeyPatch.context() as patch, gate_in_process(patch):
        for run in ("sd35m-checkpoint", "flux2-klein-4b-checkpoint"):
            files = checkpoint_files(tiny_jobs, run)
            for seed, path in enumerate(files):
                write_public_checkpoint(path, tiny_jobs.root, tiny_jobs.params[run], seed)
            import_checkpoint.run(cli.build_parser().parse_args(["import", "--experiment", run]), tiny_jobs.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Detector.__init__, "__defaults__", (96, 160))
        for name in TABLES:
            for job in jobs_of(tiny_jobs, name):
                if not tiny_jobs.done(*job).is_file():
                    tiny_jobs.run(*job)
    return tiny_jobs


def test_runs_share_prompts_text_and_stage_one(tiny_jobs: Jobs) -> None:
    shared = ("prepare_prompts", "cache_teacher", "train_acdmd")
    for run in ("geneval-sd35m", "sd35m-grpo"):
        assert [tiny_jobs.owners[run, stage] for stage in shared] == ["sd35m"] * 3
        assert tiny_jobs.owners[run, "train_rtdmd"] == tiny_jobs.owners[run, "evaluate"] == run
    assert tiny_jobs.owners["sd35m-consistency-0", "cache_teacher"] == "sd35m"
    assert tiny_jobs.owners["sd35m-consistency-0", "train_acdmd"] == "sd35m-consistency-0"
    assert tiny_jobs.owners["sd35m-eta-1", "prepare_prompts"] == "sd35m"
    assert tiny_jobs.owners["sd35m-eta-1", "train_acdmd"] == "sd35m-eta-1"
    assert jobs_of(tiny_jobs, "table_4") == [
        *(("sd35m", stage) for stage in (*shared, "train_rtdmd", "evaluate")),
        ("sd35m-grpo", "train_rtdmd"),
        ("sd35m-grpo", "evaluate"),
        ("sd35m-checkpoint", "evaluate"),
    ]
    assert (
        jobs_of(tiny_jobs, "table_2")
        == [  # the tiny models of both sizes are the same
            ("flux1-dev", "prepare_prompts"),
            *(("flux2-klein-4b", stage) for stage in (*shared[1:], "train_rtdmd", "evaluate")),
            ("flux2-klein-9b-released", "evaluate"),
            ("flux2-klein-4b-checkpoint", "evaluate"),
        ]
    )


def test_a_table_that_has_not_run_is_not_measured(tiny_jobs: Jobs) -> None:
    (cell, *_) = tiny_jobs.cells(TABLES["table_1"])
    assert cell.verdict == "not measured" or tiny_jobs.is_evaluated("sd3m")


def test_every_cell_with_a_run_is_measured(finished: Jobs) -> None:
    for name, table in TABLES.items():
        for cell in finished.cells(table):
            if cell.row.run is None:
                assert (cell.ours, cell.verdict) == (None, "not published" if cell.published is None else "no run")
                continue
            owner = finished.owners[cell.row.run.name, "evaluate"]
            own = read_json(finished.place(owner) / METRICS)["suites"][cell.column.suite][cell.row.model]
            score = cell.column.score
            value = own[score] if cell.column.tag is None else own["per_tag"][score][cell.column.tag]
            assert cell.ours == pytest.approx(value["mean"] * cell.column.times), (name, cell.row.title)


def test_shared_results_are_the_owners(finished: Jobs) -> None:
    own = finished.place("sd35m") / "results/train_acdmd"
    assert (finished.place("sd35m-grpo") / "results/train_acdmd").resolve() == own.resolve()
    assert not (finished.place("flux2-klein-9b-released") / "results/train_acdmd").exists()
    students = [
        load_tensors(finished.place(run) / "results/train_rtdmd/generator.safetensors")[0]
        for run in ("sd35m", "sd35m-grpo")
    ]
    assert any(bool((students[0][name] != value).any()) for name, value in students[1].items())


def test_page_csv_and_check_say_the_same(finished: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    page = write_table("table_2", finished)
    text = page.read_text(encoding="utf-8")
    with (page.parent / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 90 and rows[0]["published"] == "0.8538" and rows[0]["run"] == "flux2-klein-4b"
    cell = finished.cells(TABLES["table_2"])[0]
    assert float(rows[0]["ours"]) == pytest.approx(cell.ours, rel=1e-5)
    assert "FLUX.2 9B as released" in text and "there is no backbone for Z-Image" in text
    lines = check_text(["table_2"], finished)
    told: list[str] = []
    with pytest.raises(RtdmdError, match=r"^table_2: of 90 cells .* 27 without run, 9 not published$"):
        told.extend(lines)


def test_an_imported_checkpoint_is_judged_on_the_students_base(finished: Jobs) -> None:
    """klein's is not the teacher's; the images are those of the checkpoint, not of a student of ours."""
    bases = {"sd35m-checkpoint": "./data/teacher", "flux2-klein-4b-checkpoint": "./data/student"}
    for run, base in bases.items():
        record = read_json(finished.root / f"models/{run}/provenance.json")
        assert record["teacher"]["name"] == base
        assert list(record["inputs"]["import"]) == [
            f"{finished.local.checkpoints[run].path}/{file}" for file in RUNS[run].checkpoint.files
        ]
        assert {path.name for path in (finished.root / f"models/{run}").glob("*.safetensors")} == {
            "pytorch_lora_weights.safetensors"
        }
        assert not (finished.root / f"models/{run}/transformer").exists()
    scores = [
        read_json(finished.place(run) / METRICS)["suites"]["drawbench"][model]["clipscore"]["mean"]
        for run, model in (("flux2-klein-4b-checkpoint", "imported"), ("flux2-klein-4b", "train_rtdmd"))
    ]
    assert scores[0] != scores[1]


def test_the_page_of_a_run_has_the_published_figures_that_it_serves(finished: Jobs) -> None:
    """Of a run that trains, and of one that judges a checkpoint and has no curves."""
    for run, served, others in (
        ("geneval-sd35m", ("SD3.5-M teacher, guided", "RTDMD"), ("Flow-GRPO", "published checkpoint")),
        ("flux2-klein-4b-checkpoint", ("FLUX.2 4B, RTDMD: published checkpoint", "FLUX.2 4B"), ("Z-Image", "9B")),
    ):
        folder = finished.lay(run)
        report.run(folder)
        text = (folder / "results/report/index.html").read_text(encoding="utf-8")
        rows = "".join(part.partition("</table>")[0] for part in text.split('<section id="published-')[1:])
        assert all(escape(title) in rows for title in served) and not any(title in rows for title in others)
        assert ('id="curves"' in text) == (run == "geneval-sd35m")
        for table in TABLES.values():
            rows = tuple(row for row in table.rows if row.run == RUNS[run])
            assert (f"difference: {table.title}" in text) == bool(rows)
            own = [cell for cell in finished.cells(table) if cell.row.run == RUNS[run]]
            assert not rows or cells_table(replace(table, rows=rows), own) in text


def test_a_checkpoint_that_is_not_imported_stops_a_run_before_it_writes(tiny_jobs: Jobs, tmp_path: Path) -> None:
    nowhere = moved_to(tmp_path, tiny_jobs)
    says = "experiment sd35m-checkpoint: there is no folder models/sd35m-checkpoint; `rtdmd import --experiment"
    with pytest.raises(UserError, match=rf"^{says} sd35m-checkpoint` makes it$"):
        nowhere.require(TABLES["table_4"].runs())
    nowhere.require(("sd35m", "flux2-klein-4b", "flux2-klein-9b-released"))
    with pytest.raises(UserError, match=rf"^{says} sd35m-checkpoint` makes it$"):
        nowhere.run("sd35m-checkpoint", "prepare_prompts")
    assert not list(tmp_path.iterdir())


def test_a_finished_job_is_not_run_again(finished: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtdmd.stages.train_acdmd.run", lambda root: pytest.fail(f"ran again in {root}"))
    before = finished.done("sd35m", "train_acdmd").read_bytes()
    assert finished.run("sd35m", "train_acdmd").read_bytes() == before


def test_results_that_lie_where_a_link_belongs_are_not_touched(finished: Jobs, tmp_path: Path) -> None:
    moved = moved_to(tmp_path, finished)
    own = moved.place("sd35m-grpo") / "results/train_acdmd"
    own.mkdir(parents=True)
    (own / "kept").write_text("mine")
    with pytest.raises(UserError, match=r"train_acdmd: these results are now those of .*sd35m/results/train_acdmd"):
        moved.lay("sd35m-grpo")
    assert (own / "kept").read_text() == "mine"


def test_the_cost_of_a_table_counts_a_shared_stage_once(tiny_jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = {"cache_teacher": 0.5, "train_acdmd": 20.0, "train_rtdmd": 300.0, "evaluate": 1.0}

    def of_run(run: str, jobs: Jobs) -> dict[str, float]:
        return {stage: hours[stage] for stage in stages_of(jobs.params[run]) if stage in hours}

    monkeypatch.setattr("rtdmd.experiments.cost.gpu_hours", of_run)
    assert list(cost_text(["table_4"], tiny_jobs)) == [
        "| run | cache_teacher | train_acdmd | train_rtdmd | evaluate | GPU hours (H200) |",
        "|---|---|---|---|---|---|",
        "| sd35m | 0.5 | 20.0 | 300.0 | 1.0 | 321.5 |",
        "| sd35m-grpo | of sd35m | of sd35m | 300.0 | 1.0 | 301.0 |",
        "| sd35m-checkpoint | of sd35m | – | – | 1.0 | 1.0 |",
        "| all | | | | | 623.5 |",
    ]


def checkout(root: Path, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository at ``root``, which is the working folder from now on."""
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    (root / "params.yaml").write_text("mine: 1\n")
    commit(root, "dvc.yaml", "params.yaml")
    (root / LOCAL).parent.mkdir()
    shutil.copy(jobs.root / LOCAL, root / LOCAL)
    monkeypatch.chdir(root)


def test_params_and_pipeline_of_a_run_are_written_for_dvcs_queue(
    tiny_jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dvc.yaml names the grids of the run's models, and no student that it does not train."""
    checkout(tmp_path, tiny_jobs, monkeypatch)
    assert cli.main(["experiments", "--write", "flux2-klein-9b-released"]) == 0
    (tmp_path / "data").symlink_to(tiny_jobs.root / "data")
    written = load_params()
    assert written == tiny_jobs.params["flux2-klein-9b-released"]
    entry = read_pipeline(tmp_path)["evaluate"]
    check_models(written, entry)
    assert not [dep for dep in entry.deps if dep.startswith("results/train_")]
    assert cli.main(["experiments", "table_2", "--write", "sd35m"]) == 2
    assert cli.main(["experiments", "--run", "flux2-klein-9b-released", "train_rtdmd"]) == 2


def test_a_run_is_written_from_the_commit_whatever_was_written_before(
    tiny_jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout(tmp_path, tiny_jobs, monkeypatch)
    assert cli.main(["experiments", "--write", "flux2-klein-9b-released"]) == 0
    assert cli.main(["experiments", "--write", "sd35m"]) == 0
    entry = read_pipeline(tmp_path)["evaluate"]
    assert entry.deps == read_pipeline(REPOSITORY)["evaluate"].deps
    assert load_params(tmp_path / "params.yaml") == tiny_jobs.params["sd35m"]
    laid = moved_to(tmp_path, tiny_jobs)
    assert cli.main(["experiments", "--write", "flux2-klein-9b-released"]) == 0
    assert read_pipeline(laid.lay("sd35m"))["evaluate"].deps == entry.deps


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_changes_that_are_not_committed_are_not_overwritten(
    name: str, tiny_jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither over the committed file nor over what --write made; once committed or stashed the same command works."""
    checkout(tmp_path, tiny_jobs, monkeypatch)
    write = ["experiments", "--write", "flux2-klein-9b-released"]
    told = (
        f"rtdmd: {name}: differs from the committed file, and would be overwritten; keep yours with"
        f" `git commit {name}` or `git stash push {name}`, then run this command again\n"
    )
    for _ in range(2):
        texts = {path: (tmp_path / path).read_text() for path in ("params.yaml", "dvc.yaml")}
        texts[name] += "# mine\n"
        (tmp_path / name).write_text(texts[name])
        assert cli.main(write) == 2
        assert capsys.readouterr().err == told
        assert texts == {path: (tmp_path / path).read_text() for path in texts}
        commit(tmp_path, name)
        assert cli.main(write) == 0


def test_a_run_is_not_written_without_a_commit(
    tiny_jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout(tmp_path, tiny_jobs, monkeypatch)
    (tmp_path / ".git").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert cli.main(["experiments", "--write", "sd35m"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rtdmd: dvc.yaml: the committed file cannot be read (fatal: not a git repository")
    assert (tmp_path / "params.yaml").read_text() == "mine: 1\n"


def test_runs_without_published_figures_are_waited_for_too_and_take_no_lines(tiny_jobs: Jobs, tmp_path: Path) -> None:
    nowhere = moved_to(tmp_path, tiny_jobs)
    told: list[str] = []
    with pytest.raises(RtdmdError, match=r"^eta: of 6 cells 6 not measured; `snakemake experiment_eta` measures"):
        told.extend(check_text(["eta"], nowhere))
    assert told[1:3] == [
        "  not measured, η = 0.9: sd35m, train_rtdmd",
        "  not measured, η = 1: sd35m-eta-1, train_rtdmd",
    ]
    shown = [line.split("  ")[1] for line in told[4:-1]]
    assert shown == ["η = 0.9"] * 3  # of the other row nothing is published


def test_a_job_asks_for_what_its_stage_takes(tiny_jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {"train_acdmd": {"mem_mb": 7000, "runtime": 60, "gpu": 2}, "evaluate": {"mem_mb": 4000, "runtime": 9}}
    monkeypatch.setattr(Jobs, "run_resources", lambda self, run: needed)
    jobs = tiny_jobs
    params = jobs.params["sd35m"]
    assert jobs.resources("sd35m", "prepare_prompts") == {"mem_mb": 1000, "runtime": 5, "gpu": 0}
    assert jobs.resources("sd35m", "train_acdmd") == needed["train_acdmd"]
    assert jobs.resources("sd35m", "evaluate") == {"mem_mb": 4000, "runtime": 9, "gpu": 0}
    assert jobs.threads("sd35m", "prepare_prompts") == 1
    assert jobs.threads("sd35m", "evaluate") == params.run.threads
    assert jobs.threads("sd35m", "train_acdmd") == params.run.threads * params.train_acdmd.processes
    assert jobs.files([("sd35m", "evaluate")]) == [str(jobs.done("sd35m", "evaluate"))]


def test_a_training_of_several_nodes_asks_for_them(tiny_jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {"train_acdmd": {"mem_mb": 7000, "runtime": 60, "gpu": 8}, "evaluate": {"mem_mb": 4000, "runtime": 9}}
    monkeypatch.setattr(Jobs, "run_resources", lambda self, run: needed)
    tree = tiny_jobs.params["sd35m"].model_dump(mode="json")
    training = {"train_acdmd": {"processes": 16, "batch_size": 16}}
    for device, on_each in (("cuda", {"gres": "gpu:8"}), ("cpu", {"tasks": 2})):
        jobs = Jobs(tiny_jobs.root, tiny_jobs.local)
        run = {"threads": 1, "device": device, "gpus_per_node": 8}
        jobs.params = {"sd35m": validate(merged(tree, training | {"run": run}), "a test")}
        jobs.require(["sd35m"])
        asked = jobs.resources("sd35m", "train_acdmd")
        assert asked == {"mem_mb": 7000, "runtime": 60, "nodes": 2} | on_each
        assert asked.keys() <= set(ASKED)
        assert jobs.threads("sd35m", "train_acdmd") == 8
        assert jobs.resources("sd35m", "evaluate") == {"mem_mb": 4000, "runtime": 9, "gpu": 0}
