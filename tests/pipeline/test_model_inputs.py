"""Models that params.yaml names are inputs: in the run's key, in resolved.json and in both engines' eyes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from dvc.repo import Repo

from rtdmd.common.errors import UserError
from rtdmd.common.files import sha256_bytes, sha256_tree
from rtdmd.config import load_params, preset
from rtdmd.config.render import params_text
from rtdmd.pipeline.engines import load_jobs, stale_stages
from rtdmd.pipeline.lineage import Step, differences, sha256_here
from rtdmd.pipeline.model_inputs import check_local, hash_models, set_links
from rtdmd.pipeline.stage import open_stage

DVC = """
stages:
  cache_teacher:
    cmd: mkdir -p results/cache_teacher && touch results/cache_teacher/index.json
    deps: [inputs/teacher]
    params: [model]
    outs: [results/cache_teacher/index.json]
  train_rtdmd:
    cmd: mkdir -p results/train_rtdmd && touch results/train_rtdmd/curves.csv
    deps: [inputs/teacher, inputs/train_rtdmd]
    params: [train_rtdmd.rewards]
    outs: [results/train_rtdmd/curves.csv]
  evaluate:
    cmd: mkdir -p results/evaluate && touch results/evaluate/scores.csv
    deps: [inputs/evaluate]
    params: [evaluate]
    outs: [results/evaluate/scores.csv]
"""
TEACHER = "./models/t"
OUTPUTS = {"cache_teacher": "index.json", "train_rtdmd": "curves.csv", "evaluate": "scores.csv"}


@pytest.fixture
def root(tmp_path: Path, tiny_teacher: Path, tiny_clip: Path) -> Path:
    """A repository whose teacher, reward and features are folders of the user's, beside an embedded world that is
    not read; the teacher's has files that no part reads."""
    for name in ("models/t", "data/world/teacher"):
        shutil.copytree(tiny_teacher, tmp_path / name)
    for name in ("models/reward", "models/features"):
        shutil.copytree(tiny_clip, tmp_path / name)
    (tmp_path / "models/t/transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"0")
    (tmp_path / "dvc.yaml").write_text(DVC)
    set_params(tmp_path)
    return tmp_path


def set_params(root: Path, teacher: str = TEACHER, reward: str = "./models/reward") -> None:
    clip = {"name": "clipscore", "model": reward, "weight": 1.0}
    changes = {
        "model": {"teacher": teacher},
        "train_rtdmd": {"rewards": [clip]},
        "evaluate": {
            "rewards": [{"name": "world_verifier", "soft_weight": 0.7}],
            "features_model": "./models/features",
        },
    }
    (root / "params.yaml").write_text(params_text(preset("smoke", changes), "a test"))


def flip(path: Path) -> None:
    """Change one bit of the last byte."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def run(root: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """The stage's run folder and what it records as inputs."""
    with open_stage(name, root) as stage:
        stage.output(OUTPUTS[name]).write_text("")
    return stage.run_dir, json.loads((root / f"results/{name}/resolved.json").read_text())["inputs"]


def test_what_is_read_is_recorded_and_nothing_else(root: Path) -> None:
    assert set(run(root, "cache_teacher")[1]) == {TEACHER}
    assert set(run(root, "train_rtdmd")[1]) == {TEACHER, "./models/reward"}
    _, inputs = run(root, "evaluate")
    assert inputs == {"./models/features": sha256_tree(root / "models/features")}
    set_params(root, teacher="data/world/teacher")
    assert run(root, "cache_teacher")[1] == {"data/world/teacher": sha256_tree(root / "data/world/teacher")}


def test_a_run_of_the_tables_asks_for_no_model_of_a_stage_that_it_lacks(root: Path) -> None:
    """It judges teachers: a scorer of stage two may be missing, unless that stage itself is asked for."""
    set_params(root, reward="./models/nowhere")
    params = load_params(root / "params.yaml")
    says = r"^train_rtdmd\.rewards: clipscore: model: there is no folder .*models/nowhere"
    with pytest.raises(UserError, match=says):
        run(root, "evaluate")
    evaluation = params.evaluate.model_copy(update={"models": ("teacher",), "etas": ()})
    report = params.report.model_copy(update={"experiment": "flux2-klein-9b-released"})
    alone = params.model_copy(update={"evaluate": evaluation, "report": report})
    (root / "params.yaml").write_text(params_text(alone, "a test"))
    assert set(run(root, "cache_teacher")[1]) == {TEACHER}
    assert set(run(root, "evaluate")[1]) == {"./models/features"}
    with pytest.raises(UserError, match=says):
        run(root, "train_rtdmd")


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("models/t/transformer/diffusion_pytorch_model.safetensors", {"cache_teacher", "train_rtdmd"}),
        ("models/reward/model.safetensors", {"train_rtdmd"}),
        ("models/features/model.safetensors", {"evaluate"}),
        ("models/t/transformer/diffusion_pytorch_model.fp16.safetensors", set()),
        ("data/world/teacher/vae/diffusion_pytorch_model.safetensors", set()),
    ],
)
def test_one_changed_byte_is_another_run(file: str, stages: set[str], root: Path) -> None:
    before = {name: run(root, name) for name in OUTPUTS}
    flip(root / file)
    after = {name: run(root, name) for name in OUTPUTS}
    assert {name for name in OUTPUTS if before[name][0] != after[name][0]} == stages
    assert {name for name in OUTPUTS if before[name][1] != after[name][1]} == stages


def test_both_engines_name_the_stages_and_agree(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    set_links(root, load_params(root / "params.yaml"))
    with Repo.init(str(root), no_scm=True) as repo:
        repo.reproduce()

    def stale() -> tuple[set[str], set[str]]:
        with Repo(str(root)) as now:
            plain = set(now.status())
        return plain, set(stale_stages(load_jobs(load_params(root / "params.yaml"), root), root))

    both = {"cache_teacher", "train_rtdmd"}
    vae = "vae/diffusion_pytorch_model.safetensors"
    changes: list[tuple[Callable[[], None], set[str]]] = [
        (lambda: flip(root / "models/t" / vae), both),
        (lambda: flip(root / "models/reward/model.safetensors"), {"train_rtdmd"}),
        (lambda: flip(root / "models/features/model.safetensors"), {"evaluate"}),
        (lambda: set_params(root, teacher="data/world/teacher"), {"cache_teacher", "train_rtdmd"}),
        (
            lambda: flip(root / "data/world/teacher/vae/diffusion_pytorch_model.safetensors"),
            {"cache_teacher", "train_rtdmd"},
        ),
    ]
    assert stale() == (set(), set())
    for change, stages in changes:
        change()
        plain, snakemake = stale()
        assert snakemake == stages
        assert plain == stages or plain == {"cache_teacher"}  # DVC alone sees a setting before the links are set
        with Repo(str(root)) as repo:
            repo.reproduce()
        assert stale() == (set(), set())


def test_a_models_name_is_part_of_what_engines_see(root: Path) -> None:
    """Two folders of one content are two inputs: a cached result of the one is never handed out for the other."""
    shutil.copytree(root / "models/t", root / "models/u")
    set_links(root, load_params(root / "params.yaml"))
    before = sha256_tree(root / "inputs/teacher")
    set_params(root, teacher="./models/u")
    set_links(root, load_params(root / "params.yaml"))
    assert sha256_tree(root / "inputs/teacher") != before


def test_links_lead_out_of_the_repository_too(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "t"
    shutil.move(root / "models/t", elsewhere)
    set_params(root, teacher=str(elsewhere))
    assert set(run(root, "cache_teacher")[1]) == {str(elsewhere)}
    assert (root / "inputs/teacher/teacher/model_index.json").read_bytes() == (
        elsewhere / "model_index.json"
    ).read_bytes()


def test_a_reward_without_weights_is_said_by_the_first_stage(root: Path) -> None:
    (root / "models/reward/model.safetensors").unlink()
    says = r"^train_rtdmd\.rewards: clipscore: model: .*models/reward has no model\.safetensors.*; copy or download it"
    with pytest.raises(UserError, match=says):
        run(root, "cache_teacher")


def test_a_killed_process_leaves_nothing_that_stops_the_next(root: Path) -> None:
    (root / "inputs/teacher").mkdir(parents=True)
    (root / "inputs/teacher/.named.json.k1ll3d").write_text('{"model')
    (root / "inputs/teacher/.teacher.new-1").symlink_to("nowhere")
    run(root, "cache_teacher")
    assert sorted(path.name for path in (root / "inputs/teacher").iterdir()) == ["named.json", "teacher"]


def test_stages_that_start_together_set_the_links_one_after_the_other(root: Path) -> None:
    """The second waits while the first writes, and does not take its half-written file for a strange one."""
    order: list[str] = []

    def second() -> None:
        set_links(root, load_params(root / "params.yaml"))
        order.append("second")

    (root / ".rtdmd/locks").mkdir(parents=True)
    with (root / ".rtdmd/locks/inputs").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert (root / "inputs/teacher/named.json").is_file()


def test_files_that_are_no_links_are_not_removed(root: Path) -> None:
    (root / "inputs/teacher").mkdir(parents=True)
    (root / "inputs/teacher/mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.txt is not a link; inputs/ is kept by the stages: move that file"):
        run(root, "cache_teacher")
    assert (root / "inputs/teacher/mine.txt").read_text() == "mine"


def test_what_a_later_stage_would_miss_is_said_by_the_first(root: Path) -> None:
    (root / "models/t/transformer/diffusion_pytorch_model.safetensors").unlink()
    says = r"model\.teacher: .*/transformer/diffusion_pytorch_model\.safetensors is missing; it lies outside"
    with pytest.raises(UserError, match=says):
        run(root, "cache_teacher")
    with pytest.raises(UserError, match=says):
        load_jobs(load_params(root / "params.yaml"), root)
    set_params(root, teacher="data/world/teacher", reward="./models/nowhere")
    with pytest.raises(UserError, match=r"train_rtdmd\.rewards: clipscore: model: there is no folder .*nowhere"):
        run(root, "cache_teacher")


def test_a_rewards_unfilled_commit_is_said_by_the_first_stage(root: Path) -> None:
    clip = {"name": "clipscore", "model": "openai/clip-vit-large-patch14", "revision": "0" * 40}
    changes = {"model": {"teacher": TEACHER}, "train_rtdmd": {"rewards": [clip]}}
    (root / "params.yaml").write_text(params_text(preset("smoke", changes), "a test"))
    with pytest.raises(UserError, match=r"train_rtdmd\.rewards: clipscore: revision: still the placeholder"):
        run(root, "cache_teacher")


def test_a_hub_teacher_is_told_by_its_commit_and_the_hubs_own_hashes(
    root: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    cache = root / "cache"
    snapshot = cache / "snapshots" / ("1" * 40)
    for path in (path for path in tiny_teacher.rglob("*") if path.is_file()):
        blob = cache / "blobs" / f"etag-{path.parent.name}-{path.name}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(tiny_teacher)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(snapshot / "model_index.json"))
    model = {"teacher": "owner/name", "revision": "1" * 40, "max_sequence_length": 77}
    (root / "params.yaml").write_text(params_text(preset("smoke", {"model": model}), "a test"))
    params = load_params(root / "params.yaml")
    names = sorted(path.relative_to(snapshot) for path in snapshot.rglob("*") if path.is_file())
    lines = [f"etag-{snapshot.joinpath(name).parent.name}-{name.name}  {name.as_posix()}\n" for name in names]
    found = hash_models(root, params, "teacher")
    assert list(found) == [f"owner/name@{'1' * 40}"]
    lines = [line.replace(f"etag-{snapshot.name}-", f"etag-{tiny_teacher.name}-") for line in lines]
    assert list(found.values()) == [sha256_bytes("".join(lines).encode())]


def test_a_record_is_compared_with_the_files_that_are_read(root: Path) -> None:
    _, inputs = run(root, "cache_teacher")
    step = Step("cache_teacher", inputs)
    assert list(differences(root, [step], sha256_here)) == []
    flip(root / "models/t/vae/diffusion_pytorch_model.safetensors")
    assert [found.what for found in differences(root, [step], sha256_here)] == [TEACHER]


def test_a_linked_folder_is_refused_where_no_engine_looks(root: Path) -> None:
    (root / "data/prompts").mkdir()
    (root / "elsewhere").mkdir()
    (root / "data/prompts/more").symlink_to(root / "elsewhere")
    text = DVC.replace("deps: [inputs/evaluate]", "deps: [inputs/evaluate, data/prompts]")
    (root / "dvc.yaml").write_text(text)
    says = (
        r"data/prompts/more is a link to a folder, and neither engine would see a change in it; link each of its files"
    )
    with pytest.raises(UserError, match=says):
        run(root, "evaluate")
    with pytest.raises(UserError, match=says):
        load_jobs(load_params(root / "params.yaml"), root)


@pytest.mark.parametrize(
    ("experiment", "folder", "maker"),
    [
        ("sd35m-checkpoint", "models/sd35m-checkpoint", "rtdmd import --experiment sd35m-checkpoint"),
        ("sd35m-checkpoint", "models/other", "rtdmd import FILE --out models/other"),
        ("sd35m", "models/sd35m", "rtdmd import FILE --out models/sd35m"),
        (None, "models/sd35m-checkpoint", "rtdmd import FILE --out models/sd35m-checkpoint"),
    ],
)
def test_the_command_that_makes_an_imported_folder_is_one_that_does(
    experiment: str | None, folder: str, maker: str, root: Path
) -> None:
    """`--experiment` imports only the checkpoint of a run that has one, and only into that run's folder."""
    params = load_params(root / "params.yaml")
    evaluation = params.evaluate.model_copy(update={"imported": folder})
    report = params.report.model_copy(update={"experiment": experiment})
    with pytest.raises(UserError) as refused:
        check_local(root, params.model_copy(update={"evaluate": evaluation, "report": report}))
    says = f"evaluate.imported: there is no folder {folder}; `{maker}` makes it, in the root folder"
    assert str(refused.value) == says
