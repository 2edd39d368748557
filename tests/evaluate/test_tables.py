"""Tables written, read back, and compared in pairs."""

import numpy as np
import pytest
from scipy import stats

from rtdmd.commands.compare import compare
from rtdmd.common.errors import UserError
from rtdmd.evaluate.pairs import paired_difference
from rtdmd.evaluate.plan import plan_images
from rtdmd.evaluate.tables import per_tag_csv, read_scores, scores_csv, scores_of
from rtdmd.prompts.records import Prompt

ITEMS = plan_images([Prompt(i, f"p{i}", "ab"[i // 2], None) for i in range(4)], 6)


def _models():
    rng = np.random.default_rng(0)
    better = scores_of(ITEMS, {"strict": (rng.random(12) < 0.9).astype(float), "clip": rng.random(12)})
    worse = scores_of(ITEMS, {"strict": (rng.random(12) < 0.4).astype(float), "clip": rng.random(12)})
    return {"better": better, "worse": worse}


def test_scores_survive_the_file(tmp_path):
    models = _models()
    (tmp_path / "scores.csv").write_text(scores_csv({"heldout": models}))
    back = read_scores(tmp_path / "scores.csv", "worse", "heldout")
    assert (back.prompts, back.indices, back.tags) == (
        models["worse"].prompts,
        models["worse"].indices,
        models["worse"].tags,
    )
    assert back.columns["strict"].tolist() == models["worse"].columns["strict"].tolist()
    assert back.columns["clip"] == pytest.approx(models["worse"].columns["clip"], rel=1e-5)


def test_per_tag_has_a_line_for_each_model_and_tag():
    lines = per_tag_csv({"heldout": _models()}).splitlines()
    assert lines[0] == "suite,model,tag,images,strict,strict_ci95,clip,clip_ci95"
    assert [line.split(",")[1:4] for line in lines[1:]] == [
        ["better", "a", "6"],
        ["better", "b", "6"],
        ["worse", "a", "6"],
        ["worse", "b", "6"],
    ]
    mean = _models()["better"].columns["strict"][:6].mean()
    assert float(lines[1].split(",")[4]) == pytest.approx(mean, rel=1e-5)


def test_suites_stand_side_by_side_each_with_its_own_scores(tmp_path):
    """A score that a suite has not is an empty field, and read back as none; models are compared suite by suite."""
    first = _models()
    second = {
        name: scores_of(ITEMS[:3], {"ocr": np.arange(3.0) + shift}) for name, shift in (("better", 1), ("worse", 0))
    }
    path = tmp_path / "scores.csv"
    path.write_text(scores_csv({"one": first, "two": second}))
    lines = path.read_text().splitlines()
    assert lines[0] == "suite,model,prompt_id,index,tag,strict,clip,ocr"
    assert len(lines) == 1 + 2 * 12 + 2 * 3 and lines[1].endswith(",") and lines[-1] == "two,worse,0,1,a,,,2"
    assert tuple(read_scores(path, "worse", "two").columns) == ("ocr",)
    assert tuple(read_scores(path, "worse", "one").columns) == ("strict", "clip")
    with pytest.raises(UserError, match=r"no suite 'three' of worse; it holds one, two"):
        read_scores(path, "worse", "three")
    tags = per_tag_csv({"one": first, "two": second}).splitlines()
    assert tags[-1] == "two,worse,a,3,,,,,1," + tags[-1].rsplit(",", 1)[1]
    tables = compare(f"{path}:better", f"{path}:worse").split("\n\n")
    assert [table.splitlines()[0].rsplit(", ")[1] for table in tables] == ["one", "two"]
    assert tables[1].splitlines()[2].split()[:4] == ["ocr", "all", "3", "+1.0000"]
    other = tmp_path / "other.csv"
    other.write_text(scores_csv({"three": second}))
    with pytest.raises(UserError, match=r"no suite in common: .* has one, two, .* has three"):
        compare(f"{path}:better", f"{other}:worse")


def test_paired_difference_is_the_paired_t_test_whatever_the_order_of_lines():
    models = _models()
    order = np.random.default_rng(1).permutation(12)
    shuffled = scores_of([ITEMS[i] for i in order], {k: v[order] for k, v in models["worse"].columns.items()})
    got = paired_difference(models["better"], shuffled).per_tag("clip")["a"]
    delta = (models["better"].columns["clip"] - models["worse"].columns["clip"])[:6]
    test = stats.ttest_1samp(delta, 0.0).confidence_interval(0.95)
    assert got.mean == pytest.approx(delta.mean())
    assert got.ci95 == pytest.approx((test.high - test.low) / 2)


def test_compare_says_on_which_side_of_zero_the_interval_lies(tmp_path):
    items = plan_images([Prompt(i, f"p{i}", "a", None) for i in range(20)], 60)
    models = {
        name: scores_of(items, {"soft": np.linspace(0, 1, 60) + add}) for name, add in (("low", 0.0), ("high", 0.25))
    }
    path = tmp_path / "scores.csv"
    path.write_text(scores_csv({"heldout": models}))
    lines = compare(f"{path}:high", f"{path}:low").splitlines()
    assert lines[2].split() == ["soft", "all", "60", "+0.2500", "0.0000", "0.0000", "above", "0"]
    assert compare(f"{path}:low", f"{path}:low").splitlines()[2].endswith("holds 0")


def test_errors_name_what_to_change(tmp_path, monkeypatch):
    path = tmp_path / "scores.csv"
    with pytest.raises(UserError, match="no such file"):
        compare(f"{path}:a", f"{path}:a")
    path.write_text(scores_csv({"heldout": _models()}))
    with pytest.raises(UserError, match="it holds better, worse"):
        compare(f"{path}:best", f"{path}:worse")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"results/evaluate/scores\.csv: no such file"):
        compare("better", "worse")
    other = tmp_path / "other.csv"
    other.write_text(scores_csv({"heldout": {"better": scores_of(ITEMS[:5], {"strict": np.ones(5)})}}))
    with pytest.raises(UserError, match="5 in common"):
        compare(f"{path}:better", f"{other}:better")
