"""The lineage in dvc.lock: read, hashed and compared as DVC itself does, the first cause first."""

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from rtdmd.common.errors import UserError
from rtdmd.pipeline.lineage import behind, differences, flat, lock_hash, read_lock, short, stages_of
from tests.publish.publication import copy_repository, write_sources


def edit(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new, 1))

    change.__name__ = f"{path}: {old} -> {new}".replace("\n", " ")
    return change


def remove(path: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / path).unlink()

    change.__name__ = f"remove {path}"
    return change


def only_times(root: Path) -> None:
    for path in root.rglob("*"):
        if path.is_file() and ".dvc" not in path.parts:
            os.utime(path, (1, 1))


# edit -> what the first difference names; None: nothing differs
EDITS: list[tuple[Callable[[Path], None], str | None]] = [
    (only_times, None),
    (edit("params.yaml", "\nrun:", "\n# a comment\nrun:"), None),
    (edit("params.yaml", "lr: 1e-05", "lr: 0.00001"), None),
    (edit("params.yaml", "batch_size: 30", "batch_size: 31"), None),  # no stage declares it
    (edit("code/sub/__pycache__/model.pyc", "not", "still not"), None),
    (
        edit("params.yaml", "epochs: 80", "epochs: 90"),
        "train_rtdmd: params.yaml train_rtdmd.epochs: 80 recorded, 90 here",
    ),
    (
        edit("params.yaml", "weight: 0.1", "weight: 0.2"),
        "train_rtdmd: params.yaml train_rtdmd.rewards[0].weight: 0.1 recorded, 0.2 here",
    ),
    (
        edit("params.yaml", "epochs: 80", "epochs: 80, seed: 3"),
        "train_rtdmd: params.yaml train_rtdmd.seed: nothing recorded, 3 here",
    ),
    (edit("code/sub/model.py", "x = 1", "x = 2"), "train_rtdmd: code: "),
    (edit("results/evaluate/scores.csv", "a teacher", "my figures"), "evaluate: results/evaluate/scores.csv: "),
    (remove("results/train_rtdmd/resolved.json"), "train_rtdmd: results/train_rtdmd/resolved.json: "),
    (edit("dvc.yaml", "sh code/train.sh", "bash code/train.sh"), "train_rtdmd: command: `sh code/train.sh` recorded"),
    (
        edit("dvc.yaml", "deps: [code, data/teacher.txt]", "deps: [code, data/teacher.txt, params.yaml]"),
        "train_rtdmd: input params.yaml: nothing recorded, declared here",
    ),
]


def first_difference(root: Path) -> str | None:
    return next((str(one) for one in differences(root, behind("publish", read_lock(root)))), None)


@pytest.mark.parametrize(("change", "named"), EDITS, ids=lambda value: getattr(value, "__name__", None))
def test_the_first_cause_is_named(
    change: Callable[[Path], None], named: str | None, run_repository: Path, tmp_path: Path
) -> None:
    root = copy_repository(run_repository, tmp_path / "copy")
    assert first_difference(root) is None
    change(root)
    first = first_difference(root)
    assert first == named if named is None else (first or "").startswith(named)


@pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")
def test_dvc_agrees(run_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC runs the same pipeline: its lock says what ours says; after every edit it calls the same stage changed."""
    from dvc.repo import Repo

    root = tmp_path / "dvc"
    write_sources(root)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    monkeypatch.chdir(root)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        Repo.init(str(root), no_scm=True).close()
        with Repo(str(root)) as repo:
            repo.reproduce()
        assert lock_hash(behind("publish", read_lock(root))) == lock_hash(behind("publish", read_lock(run_repository)))
        for number, (change, _) in enumerate(EDITS):
            copy = copy_repository(root, tmp_path / f"edit{number}")
            change(copy)
            monkeypatch.chdir(copy)
            with Repo(str(copy)) as repo:
                status = repo.status(targets=["publish"], with_deps=True)
            ours = {one.stage for one in differences(copy, behind("publish", read_lock(copy)))}
            assert set(status) >= ours, change.__name__
            assert bool(status) == bool(ours), change.__name__


def test_a_file_is_named_where_it_first_differs_and_once(run_repository: Path, tmp_path: Path) -> None:
    root = copy_repository(run_repository, tmp_path / "copy")
    (root / "results/train_rtdmd/generator.safetensors").write_text("other weights")
    found = list(differences(root, behind("publish", read_lock(root))))
    assert [(one.stage, one.what) for one in found] == [("train_rtdmd", "results/train_rtdmd/generator.safetensors")]
    lock = yaml.safe_load((root / "dvc.lock").read_text())
    lock["stages"]["evaluate"]["deps"][0]["md5"] = "0" * 32  # evaluate once ran on others
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    copy = copy_repository(run_repository, tmp_path / "other")
    (copy / "dvc.lock").write_text(yaml.safe_dump(lock))
    found = list(differences(copy, behind("publish", read_lock(copy))))
    assert [(one.stage, one.recorded) for one in found] == [("evaluate", "000000000000")]


def test_lineage_is_what_a_stage_needs_and_its_hash_counts_nothing_else(run_repository: Path, tmp_path: Path) -> None:
    lock = read_lock(run_repository)
    steps = behind("publish", lock)
    assert [step.name for step in steps] == ["train_rtdmd", "evaluate", "publish"]
    assert [step.name for step in behind("train_rtdmd", lock)] == ["train_rtdmd"]
    root = copy_repository(run_repository, tmp_path / "copy")
    tree = yaml.safe_load((root / "dvc.lock").read_text())
    tree["stages"] = dict(reversed(tree["stages"].items()))  # as after a parallel run
    tree["stages"]["report"]["cmd"] = "something else"
    (root / "dvc.lock").write_text(yaml.safe_dump(tree, sort_keys=False))
    assert lock_hash(behind("publish", read_lock(root))) == lock_hash(steps)
    tree["stages"]["train_rtdmd"]["params"]["params.yaml"]["train_rtdmd"]["epochs"] = 81
    (root / "dvc.lock").write_text(yaml.safe_dump(tree, sort_keys=False))
    assert lock_hash(behind("publish", read_lock(root))) != lock_hash(steps)


def test_stages_are_found_by_output_or_folder(run_repository: Path) -> None:
    lock = read_lock(run_repository)
    assert stages_of("results/publish", lock) == ["publish"]
    assert stages_of("results/publish/scheduler", lock) == ["publish"]
    assert stages_of("results/train_rtdmd/generator.safetensors", lock) == ["train_rtdmd"]
    assert stages_of("results/world", lock) == []
    assert stages_of("results", lock) == stages_of(".", lock) == ["train_rtdmd", "evaluate", "report", "publish"]


def test_flat_values() -> None:
    tree = {
        "a": {"lr": "1e-05", "betas": [0.9, "1E+2"]},
        "list": [{"name": "x", "gone": None}, {"weight": 2}],
        "none": None,
    }
    assert flat(tree) == {
        "a.lr": 1e-05,
        "a.betas": [0.9, 100.0],
        "list[0].name": "x",
        "list[1].weight": 2,
        "none": None,
    }
    assert short("f" * 32 + ".dir") == "f" * 12
    assert short("missing") == "missing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("stages: [1]\n", r"dvc.lock: not a whole record of DVC \(.*\); `rtdmd recover`"),
        ("a: b: c\n", r"dvc.lock: not a whole record of DVC \(.*not YAML: mapping values.*\); `rtdmd recover`"),
    ],
)
def test_a_lock_that_cannot_be_read(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(UserError, match=message):
        read_lock(tmp_path)


def test_a_stage_that_never_ran(run_repository: Path) -> None:
    with pytest.raises(UserError, match="no stage 'train_acdmd'; `snakemake train_acdmd` runs it"):
        behind("train_acdmd", read_lock(run_repository))
