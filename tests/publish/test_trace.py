"""`rtdmd trace`: what it finds out about a result, and its exit code."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from rtdmd.cli import main
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, write_json
from rtdmd.publish.trace import table, trace_path
from rtdmd.publish.trace_hub import trace_hub
from rtdmd.publish.upload import Uploader
from rtdmd.publish.upload_http import Patience
from rtdmd.publish.upload_plan import make_publication
from tests.publish.hub_server import HubServer
from tests.publish.hub_store import Fault
from tests.publish.publication import REPO, TOKEN, copy_repository, usual_client, weights

VERSIONS = {"python": "3.11.0"}


@pytest.fixture
def root(run_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository, a copy of which is the working directory, on the versions that the record names."""
    monkeypatch.setattr("rtdmd.publish.trace.package_versions", lambda: VERSIONS)
    copy = copy_repository(run_repository, tmp_path / "repository")
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize("target", ["results/publish", "results/train_rtdmd/generator.safetensors"])
def test_a_result_that_is_as_recorded(target: str, root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["trace", target]) == 0
    out = capsys.readouterr().out
    assert out.endswith("all is here as recorded\n")
    assert "≠" not in out
    assert ("\npublish: cp -r" in out) == (target == "results/publish")
    assert out.index("train_rtdmd: sh code/train.sh") > 0


def test_the_lineage_is_walked_back_to_its_causes(root: Path) -> None:
    text = table(trace_path(Path("results/publish")), [])
    assert text.index("\npublish:") < text.index("\nevaluate:") < text.index("\ntrain_rtdmd:")
    assert "results/evaluate/scores.csv" in text
    assert text.count("from train_rtdmd") == 2  # publish and evaluate read its weights
    assert "report" not in text


def test_the_first_cause_is_named_and_marked(root: Path, capsys: pytest.CaptureFixture) -> None:
    (root / "code/sub/model.py").write_text("x = 2\n")
    (root / "results/evaluate/scores.csv").write_text("other\n")
    assert main(["trace", "results/publish"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("rtdmd trace: not as recorded; first: train_rtdmd: code: ")
    assert said.err.endswith(" here (1 more)\n")
    marked = [line.split()[2] for line in said.out.splitlines() if "≠" in line]
    assert marked == ["results/evaluate/scores.csv", "results/evaluate/scores.csv", "code"]


@pytest.mark.parametrize("target", ["nowhere/at/all", "params.yaml", "code", "nothing"])
def test_what_cannot_be_traced_ends_with_2(target: str, root: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["trace", target]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_results_that_are_not_here_are_not_looked_for_on_the_hub(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("rtdmd.publish.trace_hub.trace_hub", lambda target: pytest.fail(f"the Hub is asked: {target}"))
    shutil.rmtree("results/publish")
    assert main(["trace", "results/publish"]) == 1
    assert "first: publish: results/publish/README.md: " in capsys.readouterr().err
    assert main(["trace", "results/repot"]) == 2
    assert capsys.readouterr().err == (
        "rtdmd: results/repot: no such file or folder, and no output of dvc.lock; on the Hub it is results/repot@main\n"
    )


def test_results_that_are_links_into_the_cache_are_recorded_ones(root: Path, tmp_path: Path) -> None:
    path = root / "results/evaluate/scores.csv"
    shutil.move(path, tmp_path / "object")
    path.symlink_to(tmp_path / "object")
    traced = trace_path(Path("results/evaluate"))
    assert traced.notes == []
    assert traced.compare(root) == []


def test_a_copy_of_an_output_is_known_by_its_bytes(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mine.safetensors"
    shutil.copy("results/train_rtdmd/generator.safetensors", copy)
    traced = trace_path(copy)
    assert "the same bytes as results/train_rtdmd/generator.safetensors" in traced.title
    assert traced.compare(root) == []


def test_a_published_folder_elsewhere(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree("results/publish", tmp_path / "published"))
    traced = trace_path(folder)
    assert traced.compare(root) == []
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    (root / "data/teacher.txt").write_text("another teacher")
    found = [str(one) for one in trace_path(folder).compare(root)]
    assert found[0].startswith("the folder itself: scheduler/scheduler_config.json: ")  # before any cause
    assert found[1].startswith("train_rtdmd: data/teacher.txt: ")


def test_weights_alone_and_a_copied_stage_folder(root: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    shutil.copy("results/publish/pytorch_lora_weights.safetensors", alone)
    (root / "dvc.lock").unlink()
    assert trace_path(alone).compare(root) == []
    stage = Path(shutil.copytree("results/train_rtdmd", tmp_path / "copied"))
    traced = trace_path(stage)
    assert traced.compare(root) == []
    assert "a copy of results/train_rtdmd" in traced.notes[0]
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes(weights({}))
    with pytest.raises(UserError, match="not a record of this package"):
        trace_path(bare)


def test_versions_count_last(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree("results/publish", tmp_path / "published"))
    monkeypatch.setattr("rtdmd.publish.trace.package_versions", lambda: {"python": "3.12.0"})
    found = trace_path(folder).compare(root)
    assert [str(one) for one in found] == ["package versions: python: 3.11.0 recorded, 3.12.0 here"]
    assert "package versions\n  ≠ python" in table(trace_path(folder), found)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own
def test_a_repository_on_the_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual_client(monkeypatch)
    patience = Patience(sleep=lambda _: None)
    with HubServer(TOKEN) as hub:
        api = HfApi(endpoint=hub.url, token=True)
        publication = make_publication(root, REPO, private=True)
        Uploader(publication, api, patience).run()
        hub.inject(Fault("tree", "503"), Fault("resolve", "cut"))
        received = hub.requests["download"]
        traced = trace_hub(REPO, api, patience)
        assert hub.pending() == []
        assert hub.requests["download"] == received  # large files tell their hash
        assert traced.compare(root) == []
        assert traced.notes == [f"published as {publication.tag} from commit {publication.record['git_commit']}"]
        tagged = trace_hub(f"{REPO}@{publication.tag}", api, patience)
        assert [step.name for step in tagged.steps] == ["publish", "train_rtdmd", "evaluate"]
        repo = hub.repos[REPO]
        oid = repo.branches["main"]
        del repo.commits[oid][2]["samples.png"]
        damaged = trace_hub(REPO, api, patience).compare(root)
        assert [one.what for one in damaged] == ["samples.png"]
        with pytest.raises(UserError, match="the token may not see it"):
            trace_hub("somebody/else", api, patience)
    with pytest.raises(UserError, match=r"no Hub repository's name"):
        trace_hub("not a name")


def test_dirty_publications_say_so(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree("results/publish", tmp_path / "published"))
    write_json(
        folder / "upload.json", {"tag": "t", "git_commit": None, "changed_files": ["x.py"], "stale": [], "files": {}}
    )
    notes = trace_path(folder).notes
    assert notes == ["published as t from commit unknown", "published with --allow-dirty: x.py"]
    assert read_json(folder / "upload.json")["tag"] == "t"


@pytest.mark.parametrize("target", ["results", ".", "results/"])
def test_a_folder_of_several_stages_is_traced_as_a_whole(
    target: str, root: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["trace", target]) == 0
    said = capsys.readouterr().out
    assert "stages train_rtdmd, evaluate, report, publish of dvc.lock" in said
    (root / "results/report/page.html").write_text("tampered")
    assert main(["trace", target]) == 1
    assert "first: report: results/report/page.html" in capsys.readouterr().err
    (root / "results/comparison").mkdir()
    (root / "results/comparison/table.csv").write_text("not of dvc.lock")
    main(["trace", target])
    assert "not in dvc.lock, so not looked at: results/comparison/table.csv" in capsys.readouterr().out


def test_a_file_that_is_the_output_of_several_stages_is_traced_to_all_of_them(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy("results/evaluate/scores.csv", tmp_path / "mine.csv"))
    traced = trace_path(copy)
    assert "the same bytes as results/train_rtdmd/generator.safetensors and results/evaluate/scores.csv" in traced.title
    assert [step.name for step in traced.steps] == ["train_rtdmd", "evaluate", "report"]


def test_files_that_a_published_folders_record_does_not_tell_are_named(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree("results/publish", tmp_path / "published"))
    (folder / "transformer").mkdir()
    (folder / "transformer/shadow-00001.safetensors").write_text("loaded by whom?")
    assert trace_path(folder).notes == ["not in its record, so not looked at: transformer/shadow-00001.safetensors"]
    (folder / "gate.json").unlink()
    assert trace_path(folder).notes[0] == "no gate.json or upload.json that tells its files, so they are not compared"


def test_a_record_whose_settings_are_not_those_of_its_hash_is_named(root: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree("results/publish", tmp_path / "published"))
    record = read_json(folder / "provenance.json")
    record["settings"]["run.seed"] = 9
    write_json(folder / "provenance.json", record)
    found = trace_path(folder).compare(root)
    assert [one.what for one in found][:1] == ["settings_sha256"]
