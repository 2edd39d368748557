"""`rtdmd verify --study`: a row per variant and seed, one picture, the same bytes again."""

import pytest
import torch

from rtdmd.commands import verify
from rtdmd.common.errors import UserError
from rtdmd.config import preset
from rtdmd.config.presets import RECIPES
from rtdmd.oracle import reinforcement
from tests.oracle.test_verify import arguments
from tools import oracle_study as study

TINY = {"prompts_per_epoch": 4, "group_size": 4, "fake_batch_size": 8, "epochs": 1}
SHORT = (
    study.Variant("AC-DMD", "one", {"iterations": 4, "batch_size": 8}, (0,)),
    study.Variant("told the step", "one", {"iterations": 4, "batch_size": 8}, (0,), True),
    study.Variant("matching through the whole chain", "two", TINY, (0, 1)),
    study.Variant("matching as a reward", "two", TINY | {"matching_path": "reward"}, (0,)),
)


def test_the_study_writes_its_table_and_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(study.time, "process_time", lambda: 0.0)
    for folder in ("one", "two"):
        lines = list(study.run(tmp_path / folder, SHORT))
    assert len(lines) == 5 and lines[0].startswith("one  AC-DMD  seed 0  distance 0.1")
    rows = [line.split(",") for line in (tmp_path / "one/study.csv").read_text().splitlines()]
    assert rows[0] == ["stage", "variant", "seed", "reward", "variance", "distance", "seconds"]
    assert rows[1][3] == rows[1][4] == "" and float(rows[3][4]) == pytest.approx(1, abs=0.1)
    assert rows[3] != rows[4] and rows[4][2] == "1"
    assert [(tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes() for name in FILES] == [
        True,
        True,
    ]
    assert (tmp_path / "one/clouds.png").read_bytes().startswith(b"\x89PNG")


FILES = ("study.csv", "clouds.png")


def test_the_studys_names_and_pictures_agree_and_its_settings_are_valid():
    names = [variant.name for variant in study.VARIANTS]
    assert len(set(names)) == len(names) and set(study.SHOWN) <= set(names)
    for variant in study.VARIANTS:
        if variant.stage == "two":
            reinforcement.fixed_point(reinforcement.MIXTURE, variant.changes)


def test_the_study_goes_alone():
    with pytest.raises(UserError, match="--study takes no other options"):
        verify.run(arguments("--study", "somewhere", "--only", "T8"))


def test_the_corrected_recipe_is_what_the_statements_train_with():
    """What `recipe: corrected` promises is what T8 measures, except that SubGRPO shares noise there."""
    promised = RECIPES["corrected"]["train_rtdmd"]
    assert preset("world", RECIPES["corrected"]).train_rtdmd.recipe == "corrected"
    differ = {
        key: value
        for key, value in promised.items()
        if reinforcement.CORRECTED.get(key, preset("world").train_rtdmd.model_dump(mode="json")[key]) != value
    }
    assert set(differ) == {"recipe", "share_noise", "matching_path"}


def test_the_student_starts_at_the_teachers_law():
    mixture = reinforcement.MIXTURE
    student = reinforcement.student_mixture(mixture)
    values = torch.linalg.eigvalsh(student.covariances[0, 0])
    exact = torch.linalg.eigvalsh(mixture.covariances[0, 0])
    torch.testing.assert_close(reinforcement.few_step_variance(values), exact, rtol=1e-10, atol=0)
    trainer = reinforcement.start_stage_two(mixture, {}, reinforcement.Setting(), width=8)
    samples = reinforcement.sample_generator(trainer.adapters, mixture, 20_000, seed=2).double()
    for prompt in range(mixture.prompts):
        part = samples[prompt :: mixture.prompts]
        torch.testing.assert_close(part.mean(0), mixture.mean()[prompt], rtol=0, atol=0.04)  # 4 standard errors
        torch.testing.assert_close(torch.cov(part.T), mixture.covariance()[prompt], rtol=0, atol=0.07)
