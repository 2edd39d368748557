"""A student is loaded as it was trained, or the setting that differs is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.common.errors import UserError
from rtdmd.common.files import save_tensors, write_json
from rtdmd.config import Params, preset
from rtdmd.train.student_record import read_student

SOURCE = "results/train_acdmd/generator.safetensors"


def written(folder: Path, params: Params, model: dict[str, Any] | None = None, imported: bool = False) -> Path:
    """A student that was trained with ``params`` (imported: on ``model``), its record where each kind keeps it."""
    section = params.model.model_dump(mode="json") | (model or {})
    header = {"rank": str(params.adapter.rank), "alpha": str(params.adapter.alpha), "stage": "train_acdmd"}
    if imported:
        header["model"] = json.dumps(section)
    else:
        write_json(folder / "resolved.json", {"stage": "train_acdmd", "params": {"model": section}})
    save_tensors({"x": torch.ones(2)}, folder / "generator.safetensors", header)
    return folder / "generator.safetensors"


@pytest.mark.parametrize("imported", [False, True])
def test_as_it_was_trained(imported: bool, tmp_path: Path) -> None:
    params = preset("smoke")
    path = written(tmp_path, params, imported=imported)
    assert torch.equal(read_student(path, params, SOURCE)["x"], torch.ones(2))
    free = {"dtype": "bfloat16", "guidance": 3.0, "teacher_steps": 9}  # these do not decide what a student draws
    assert read_student(path, preset("smoke", {"model": free}), SOURCE).keys() == {"x"}


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adapter": {"alpha": 32}}, "adapter.alpha: 8, params.yaml says 32; set adapter.alpha: 8"),
        ({"adapter": {"rank": 2}}, "adapter.rank: 4, params.yaml says 2; set adapter.rank: 4"),
        ({"model": {"teacher": "other"}}, "model.teacher: data/world/teacher, params.yaml says other; set model.teach"),
        ({"model": {"num_steps": 8}}, "model.num_steps: 4, params.yaml says 8; set model.num_steps: 4"),
        ({"model": {"width": 24}}, "model.width: null, params.yaml says 24; set model.width: null"),
        ({"model": {"shift": 5}}, "model.shift: null, params.yaml says 5.0; set model.shift: null"),
        ({"model": {"eta": 0.5}}, "model.eta: 0.9, params.yaml says 0.5; set model.eta: 0.9"),
        ({"model": {"resolution": 72}}, "model.resolution: 36, params.yaml says 72; set model.resolution: 36"),
    ],
)
def test_what_differs_is_named(imported: bool, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    trained = preset("smoke")
    path = written(tmp_path, trained, imported=imported)
    with pytest.raises(UserError) as refused:
        read_student(path, preset("smoke", changes), SOURCE)
    assert str(refused.value).startswith(f"{SOURCE} was trained with {says}")
    assert str(refused.value).endswith("to use it, or run the stage that makes it again")


def test_a_record_of_before_there_was_a_shift_is_of_the_schedulers_own(tmp_path: Path) -> None:
    params = preset("smoke")
    path = written(tmp_path, params)
    record = json.loads((tmp_path / "resolved.json").read_text())
    del record["params"]["model"]["shift"]
    write_json(tmp_path / "resolved.json", record)
    assert read_student(path, params, SOURCE).keys() == {"x"}
    with pytest.raises(UserError, match=r"with model\.shift: null, params\.yaml says 5\.0; set"):
        read_student(path, preset("smoke", {"model": {"shift": 5}}), SOURCE)


def test_the_record_in_the_file_goes_before_the_one_beside_it(tmp_path: Path) -> None:
    """An imported student copied over a trained one: the settings file beside it is the other's."""
    params = preset("smoke")
    written(tmp_path, params)
    path = written(tmp_path, params, {"teacher": "./base"}, imported=True)
    with pytest.raises(UserError, match=r"model\.teacher: \./base"):
        read_student(path, params, SOURCE)
    assert read_student(path, preset("smoke", {"model": {"teacher": "./base"}}), SOURCE).keys() == {"x"}


def test_a_student_of_another_base_is_refused_whichever_of_the_two_differs(tmp_path: Path) -> None:
    """Trained with a base of its own: that base, and the teacher whose text encoders and VAE it was trained with."""
    own = {"model": "./klein", "revision": None}
    trained = preset("smoke", {"model": {"student": own}})
    path = written(tmp_path, trained)
    assert read_student(path, trained, SOURCE).keys() == {"x"}
    with pytest.raises(UserError) as refused:
        read_student(path, preset("smoke"), SOURCE)
    assert "model.student: {model: ./klein, revision: null}, params.yaml says null; set model.student: {mod" in str(
        refused.value
    )
    with pytest.raises(UserError, match=r"model\.student: \{model: \./klein, .*\}, params\.yaml says \{model: \./oth"):
        read_student(path, preset("smoke", {"model": {"student": own | {"model": "./other"}}}), SOURCE)
    with pytest.raises(UserError, match=r"model\.teacher: data/world/teacher, params\.yaml says \./a"):
        read_student(path, preset("smoke", {"model": {"teacher": "./a", "student": own}}), SOURCE)


def test_a_student_of_before_there_were_two_bases_stood_on_one(tmp_path: Path) -> None:
    path = written(tmp_path, preset("smoke"))
    record = json.loads((tmp_path / "resolved.json").read_text())
    del record["params"]["model"]["student"]
    write_json(tmp_path / "resolved.json", record)
    assert read_student(path, preset("smoke"), SOURCE).keys() == {"x"}
    with pytest.raises(UserError, match=r"model\.student: null, params\.yaml says \{model: \./klein, revision: null\}"):
        read_student(path, preset("smoke", {"model": {"student": {"model": "./klein", "revision": None}}}), SOURCE)


def test_an_imported_student_knows_its_own_base_alone(tmp_path: Path) -> None:
    """The public code's checkpoints say nothing of a teacher: they fit where their base is the student's."""
    path = written(tmp_path, preset("smoke"), {"teacher": "./klein"}, imported=True)
    own = {"model": "./klein", "revision": None}
    assert read_student(path, preset("smoke", {"model": {"student": own}}), SOURCE).keys() == {"x"}
    with pytest.raises(UserError, match=r"model\.student\.model: \./klein, params\.yaml says \./other; set"):
        read_student(path, preset("smoke", {"model": {"student": own | {"model": "./other"}}}), SOURCE)
