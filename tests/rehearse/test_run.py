"""The rehearsal around the run: its folder, what of the user's it leaves alone, and faults in the run's own words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rtdmd.cli import main
from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.signals import Stopped
from rtdmd.config import Params, preset
from rtdmd.config.render import params_text
from rtdmd.experiments import find_run
from rtdmd.experiments.settings import load_local, run_params
from rtdmd.publish.adapter import read_adapter
from rtdmd.publish.known_bases import layout_of
from rtdmd.rehearse import bases
from rtdmd.rehearse import run as rehearsal
from rtdmd.rehearse.folder import LINES, check_places, lay, place_of
from rtdmd.rehearse.hub import Hub
from rtdmd.rehearse.hub_store import Fetch
from rtdmd.rehearse.imported import write_checkpoint
from rtdmd.rehearse.reduced import filled_in, reduced
from rtdmd.rehearse.run import Plan, rehearse, serve, stand_ins, surroundings
from rtdmd.rehearse.stand_in import StandIn
from rtdmd.rehearse.table import Row, access_text, downloads_text, exercised, measured, silent_text, table_text
from tests.workspace import REPOSITORY

PROMPTS = "data/prompts/drawbench.txt"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout with results, a lock and prompts of the user's, in which the commands run."""
    root = tmp_path / "checkout"
    files = {
        "Snakefile": "rule all:\n",
        "dvc.yaml": (REPOSITORY / "dvc.yaml").read_text(),
        ".gitignore": "/results/\n",
        ".dvc/config": "[core]\n    analytics = false\n",
        "rtdmd/__init__.py": "",
        "results/evaluate/metrics.json": "{}\n",
        "dvc.lock": "schema: '2.0'\n",
        PROMPTS: "".join(f"prompt {i}\n" for i in range(200)),
        "data/prompts/geneval.jsonl": "".join(json.dumps({"prompt": f"{i}"}) + "\n" for i in range(3)),
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    monkeypatch.chdir(root)
    return root


def small(name: str = "sd35m") -> Params:
    """A preset as it is rehearsed."""
    return reduced(filled_in(preset(name)), "cpu")


def a_file(text: str, path: str) -> StandIn:
    """A stand-in for a file of the user's."""
    return StandIn(path, None, "file", False, lambda place: place.write_text(text) and None, "nothing")


def test_the_folder_has_the_workflow_and_the_users_first_prompts_and_no_result(checkout: Path, tmp_path: Path) -> None:
    before = sorted(path for path in checkout.rglob("*") if ".git/" not in str(path))
    hub_file = StandIn("owner/name", "7" * 40, "model", True, lambda place: (place / "a.json").write_text("{}"), "all")
    models = [hub_file, a_file("x\n", PROMPTS), a_file("made up\n", "data/prompts/ocr.txt")]
    folder = tmp_path / "folder"
    folder.mkdir()
    assert lay(checkout, folder, small(), None, models) == [PROMPTS]
    assert (folder / PROMPTS).read_text().splitlines() == [f"prompt {i}" for i in range(LINES)]
    assert (folder / "data/prompts/ocr.txt").read_text() == "made up\n"
    assert (place_of(hub_file, folder) / "a.json").read_text() == "{}"
    assert not (folder / "results").exists()
    assert not (folder / "dvc.lock").exists()
    assert (folder / "dvc.yaml").read_text() == (checkout / "dvc.yaml").read_text()
    assert (folder / ".dvc/config.local").read_text() == "[cache]\n    dir = cache\n"
    shown = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True)
    assert shown.stdout == ""
    assert sorted(path for path in checkout.rglob("*") if ".git/" not in str(path)) == before


def test_a_stand_in_for_everything_and_the_hub_shows_what_is_never_read(tmp_path: Path) -> None:
    models = stand_ins(small("flux2-klein-4b"))
    hub_ids = {one.repo for one in models if one.revision is not None}
    assert {"black-forest-labs/FLUX.2-klein-base-4B", "black-forest-labs/FLUX.2-klein-4B", "xswu/HPSv2"} <= hub_ids
    assert {"data/prompts/pickscore_train.txt", "models/aesthetic"} <= {one.repo for one in models} - hub_ids
    with Hub("token") as hub:
        one = StandIn("owner/name", "7" * 40, "dataset", True, lambda place: None, "all")
        place_of(one, tmp_path).mkdir(parents=True)
        (place_of(one, tmp_path) / "a.txt").write_text("a")
        serve(hub, [one, a_file("x\n", PROMPTS)], tmp_path)
        assert hub.repos["datasets/owner/name"].gated
        assert downloads_text(hub) == "downloads: none"
        hub.repos["other/name"] = hub.repos["datasets/owner/name"]
        hub.fetched[Fetch("datasets/owner/name", "a.txt")] = 2
        assert downloads_text(hub).splitlines() == [
            "downloads: 1 files of 1 repositories (owner/name 1 of 1)",
            "  a.txt of datasets/owner/name was fetched 2 times",
            "  other/name was never read",
        ]


@pytest.mark.parametrize(
    ("has_token", "token"),
    [(True, "a token is set here; what it may read was not asked"), (False, "no token is set here: `hf auth login`")],
)
def test_gated_repositories_are_named_with_the_pages_to_visit(has_token: bool, token: str) -> None:
    assert access_text(stand_ins(small("flux2-klein-9b")), has_token=has_token).splitlines() == [
        f"to ask for before the real run ({token}):",
        "  black-forest-labs/FLUX.2-klein-base-9B is gated: accept its terms on"
        " https://huggingface.co/black-forest-labs/FLUX.2-klein-base-9B",
        "  black-forest-labs/FLUX.2-klein-9B is gated: accept its terms on"
        " https://huggingface.co/black-forest-labs/FLUX.2-klein-9B",
    ]


def test_nothing_of_the_users_hub_reaches_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE", "SNAKEMAKE_PROFILE"):
        monkeypatch.setenv(name, "hf_of_the_user")
    monkeypatch.setenv("NO_PROXY", "intern")
    found = surroundings(tmp_path, "http://127.0.0.1:1")
    assert "hf_of_the_user" not in found.values()
    assert (found["HF_ENDPOINT"], found["HF_HOME"]) == ("http://127.0.0.1:1", str(tmp_path / "home"))
    assert found["HF_HUB_ETAG_TIMEOUT"] == found["HF_HUB_DOWNLOAD_TIMEOUT"] == "600"  # a busy machine is no fault
    assert found["NO_PROXY"] == found["no_proxy"] == "127.0.0.1,intern"
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "model.revision: still the placeholder; write the commit of stabilityai/stable-diffusion-3.5-medium"),
        ({"model": {"resolution": 8}}, "model.revision: still the placeholder"),
        (
            {"evaluate": {"models": ["teacher"], "etas": []}},
            "evaluate.models and the grids in dvc.yaml's outputs differ by teacher_few_step, train_acdmd, train_rtdmd",
        ),
        ({"publish": {"format": "lora"}}, "publish.format: lora: take it from the outs of publish in dvc.yaml"),
    ],
)
def test_what_the_real_run_would_refuse_is_refused_before_anything_is_made(
    checkout: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], says: str
) -> None:
    (checkout / "params.yaml").write_text(params_text(preset("sd35m", changes), "a test"), encoding="utf-8")
    fill = [] if "placeholder" in says else ["--fill-in"]
    assert main(["rehearse", "--keep", "kept", *fill]) == 2
    assert capsys.readouterr().err.startswith(f"rtdmd: {says}")
    assert not (checkout / "kept").exists()


def test_a_mistake_in_the_params_is_named(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = params_text(preset("sd35m"), "a test").replace("group_size:", "group_sise:")
    (checkout / "params.yaml").write_text(text, encoding="utf-8")
    assert main(["rehearse"]) == 2
    assert "train_rtdmd.group_sise: unknown key" in capsys.readouterr().err


def test_every_line_of_the_users_prompts_is_read_first(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "data/prompts/geneval.jsonl").unlink()
    text = params_text(preset("sd35m", {"prepare_prompts": {"on_bad": "error"}}), "a test")
    (checkout / "params.yaml").write_text(text, encoding="utf-8")
    with (checkout / PROMPTS).open("ab") as file:
        file.write(b"caf\xe9\n")
    assert main(["rehearse", "--fill-in", "--keep", "kept"]) == 2
    assert capsys.readouterr().err.startswith(f"rtdmd: {PROMPTS}:201: not UTF-8 (the byte 0xe9)")
    assert not (checkout / "kept").exists()


def test_ctrl_c_says_that_nothing_goes_on(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> str:
        raise KeyboardInterrupt("nothing is kept of a rehearsal")

    (checkout / "params.yaml").write_text(params_text(preset("sd35m"), "a test"), encoding="utf-8")
    monkeypatch.setattr(rehearsal, "rehearse", stopped)
    assert main(["rehearse"]) == 130
    assert capsys.readouterr().err == "rtdmd rehearse: stopped; nothing is kept of a rehearsal\n"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"model": {"teacher": "../teacher", "revision": None}},
            "model.teacher: ../teacher: a rehearsal runs in a folder of its own, where that is another one; name it by",
        ),
        (
            {"evaluate": {"models": ["imported"], "etas": [], "imported": "/models/a"}},
            "evaluate.imported: /models/a: a rehearsal makes that folder anew, so it has to lie in the checkout, such"
            " as models/a",
        ),
    ],
)
def test_a_folder_that_would_lie_elsewhere_is_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(says)}"):
        check_places(preset("sd35m", changes))


def test_a_table_is_cut_between_two_rows(checkout: Path, tmp_path: Path) -> None:
    """Each row's quoted cell takes two lines."""
    rows = [f'{i},"one\ntwo {i}"\n' for i in range(LINES + 6)]
    (checkout / "data/prompts/a.csv").write_text("number,prompt\n" + "".join(rows))
    folder = tmp_path / "folder"
    folder.mkdir()
    assert lay(checkout, folder, small(), None, [a_file("", "data/prompts/a.csv")]) == ["data/prompts/a.csv"]
    assert (folder / "data/prompts/a.csv").read_text() == "number,prompt\n" + "".join(rows[:LINES])


def test_nothing_of_a_hook_of_git_reaches_the_users_repository(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook runs with GIT_DIR set."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))
    lay(checkout, folder, small(), None, [])
    monkeypatch.delenv("GIT_DIR")
    assert (folder / ".git").is_dir()
    known = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, check=False)
    assert known.returncode != 0  # nothing was committed there


def test_a_checkpoint_of_the_public_layout_is_imported_on_the_students_base(tmp_path: Path) -> None:
    """Its adapter reaches every layer of the stand-in that the params' targets name, the student's base."""
    params = small("flux2-klein-4b")
    params = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"imported": "models/a"})})
    models = bases.stand_ins(params)
    for one in models:
        place_of(one, tmp_path).mkdir(parents=True)
        one.write(place_of(one, tmp_path))
    words = write_checkpoint(tmp_path, params, models)
    assert words[2:] == ["--base", "black-forest-labs/FLUX.2-klein-4B", "--alpha", "8", "--out", "models/a"]
    adapter = read_adapter(tmp_path / words[1], 8.0)
    blocks, single, _ = layout_of(adapter)
    assert (adapter.rank, blocks, single) == (4, 2, 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--set", "train_acdmd.batch_size=1"],
            "--set: not read by this kind of rehearsal; leave it out, or add --real",
        ),
        (["--real-size", "--processes", "2"], "--processes: not read by this kind of rehearsal; leave it out"),
        (["--real-size", "--keep", "kept"], "--keep: not read by this kind of rehearsal; leave it out"),
    ],
)
def test_an_option_that_would_not_be_read_is_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rehearse", "--preset", "sd35m", *words]) == 2
    assert capsys.readouterr().err.startswith(f"rtdmd: {says}")


def test_a_folder_that_is_there_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--keep .*: exists; name a new folder"):
        rehearse(tmp_path, Plan(preset("sd35m")), keep=tmp_path)


@pytest.mark.parametrize(
    ("log", "error", "says"),
    [
        (
            "a bar\nrtdmd: rewards: hpsv2: model: xswu/HPSv2 is gated\nERROR: failed to reproduce\n",
            UserError,
            "rewards: hpsv2: model: xswu/HPSv2 is gated",
        ),
        (
            "rtdmd train_rtdmd: epoch 1: the loss is not finite\n",
            RtdmdError,
            "train_rtdmd: epoch 1: the loss is not finite",
        ),
        ("Killed\n", RtdmdError, "train_rtdmd ended with 3; the last lines of {log} say why"),
    ],
)
def test_a_fault_is_in_the_words_of_the_stage(tmp_path: Path, log: str, error: type[RtdmdError], says: str) -> None:
    """The stage whose log came last, of those that have not ended well."""
    for folder in ("logs", "benchmarks"):
        (tmp_path / folder).mkdir()
    for number, stage in enumerate(("train_acdmd", "train_rtdmd", "prepare_prompts")):
        (tmp_path / f"logs/{stage}.log").write_text(log)
        os.utime(tmp_path / f"logs/{stage}.log", (number, number))
    (tmp_path / "benchmarks/prepare_prompts.tsv").write_text("s\tmax_rss\tcpu_time\n9.0\t1.0\t1.0\n")
    ended = rehearsal._of_stages(tmp_path, 3)
    assert (ended.what, ended.log, type(ended.error)) == ("train_rtdmd", Path("logs/train_rtdmd.log"), error)
    assert str(ended.error) == says.format(log=tmp_path / "logs/train_rtdmd.log")


def test_snakemake_itself_is_named_where_no_stage_began(tmp_path: Path) -> None:
    ended = rehearsal._of_stages(tmp_path, 1)
    assert (ended.what, ended.log, str(ended.error)) == (
        "snakemake",
        None,
        "snakemake ended with 1; its last lines say why",
    )


def test_an_upload_that_fails_is_named_with_its_log_below_what_went_well(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`rtdmd upload` where there is no dvc.yaml: exit code 2, and its line is that of the rehearsal."""

    def rehearsed(_: Path, folder: Path, __: Plan, rows: list[Row]) -> str:
        rows.append(Row("report", "the page", 12.0, 7.6, 1530.0))
        rehearsal._logged("upload", ["upload"], folder, dict(os.environ))
        return "not reached"

    monkeypatch.setattr(rehearsal, "_rehearsed", rehearsed)
    with pytest.raises(UserError, match=r"^params\.yaml") as told:
        rehearse(checkout, Plan(preset("sd35m"), fill_in=True), keep=checkout / "kept")
    log = checkout / "kept/logs/upload.log"
    assert log.read_text() == f"rtdmd: {told.value}\n"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"rtdmd: {told.value}"  # shown as it is said
    assert [line.split()[0] for line in said[1:4]] == ["stage", "report", "upload"]
    assert said[3].split("  ")[1].strip() == f"failed; its log: {log}"


def test_a_kept_folder_is_named_after_a_fault_and_gone_after_ctrl_c(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    plan = Plan(preset("sd35m"), fill_in=True)

    def fails(*_: object) -> str:
        raise RtdmdError("no")

    monkeypatch.setattr(rehearsal, "_rehearsed", fails)
    with pytest.raises(RtdmdError, match=r"^no$"):
        rehearse(checkout, plan)
    kept = capsys.readouterr().err.removeprefix("rtdmd rehearse: its folder is kept: ").strip()
    assert Path(kept).is_dir()

    def stopped(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(rehearsal, "_rehearsed", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"^nothing is kept of a rehearsal$"):
        rehearse(checkout, plan)
    assert [path.name for path in tmp_path.glob("rtdmd-rehearse-*")] == [Path(kept).name]


@pytest.mark.parametrize(("stop", "number"), [(KeyboardInterrupt, signal.SIGINT), (Stopped, signal.SIGTERM)])
def test_all_that_was_started_ends_by_the_signal_that_came(
    tmp_path: Path, stop: type[BaseException], number: signal.Signals
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def stopped() -> None:
        with rehearsal._group(["sleep", "600"], tmp_path, dict(os.environ), sys.stderr) as process:
            started.append(process)
            raise stop

    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
    try:
        with pytest.raises(stop):
            stopped()
    finally:
        signal.signal(signal.SIGINT, former)
    assert started[0].returncode == -number


def test_a_policy_gradient_that_had_nothing_to_weigh_is_told(tmp_path: Path) -> None:
    """One scorer that counts objects can score all images of a prompt alike: no fault of the run, and told."""
    params = run_params(find_run("geneval-sd35m"), load_local(REPOSITORY))
    assert silent_text(params, tmp_path) == ""
    curves = tmp_path / "results/train_rtdmd/curves.csv"
    curves.parent.mkdir(parents=True)
    curves.write_text("epoch,advantage_std\n1,0.0\n2,0.7\n")
    assert silent_text(params, tmp_path) == ""
    curves.write_text("epoch,advantage_std\n1,0.0\n2,0.0\n")
    assert silent_text(params, tmp_path).strip() == (
        "the policy gradient: the stand-ins of geneval distinguished no two images of a prompt, so every advantage was"
        " zero"
    )
    without = run_params(find_run("sd3m-gdmd"), load_local(REPOSITORY))
    assert silent_text(without, tmp_path) == ""


def test_the_table(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "report.tsv").write_text("s\tmax_rss\tcpu_time\n9.0\t1.0\t1.0\n12.4\t1530.0\t7.6\n")
    (tmp_path / "benchmarks" / "publish.tsv").write_text("s\tmax_rss\tcpu_time\n0.2\t-\tNA\n")
    assert measured(tmp_path, "evaluate") is None
    did = exercised(small(), tmp_path)
    assert did["train_rtdmd"] == "4 rewards (clipscore, hpsv2, pickscore, geneval); 2 rollouts of 2 x 2 images"
    assert did["evaluate"] == "4 models on 5 suites by 9 scorers, 64 pixels"
    rows = [Row(stage, "it", *found) for stage in ("report", "publish") if (found := measured(tmp_path, stage))]
    assert table_text(rows).splitlines() == [
        "stage    exercised  time  CPU  peak memory",
        "report   it         12 s  8 s      1.53 GB",
        "publish  it          0 s    -            -",
        "all                 13 s  8 s",
    ]
