"""Stages evaluate, report and publish, run for real on tiny models."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from PIL import Image

from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, sha256_file, write_json
from rtdmd.common.images import png_bytes
from rtdmd.conditioning.text_cache import FOLDER, TextCache, cache_key
from rtdmd.config import load_params, preset
from rtdmd.evaluate.frontier import frontier
from rtdmd.evaluate.parses import read_parses
from rtdmd.evaluate.plan import plan_images
from rtdmd.evaluate.reference import world_images
from rtdmd.evaluate.samples import load_sampler, model_images
from rtdmd.evaluate.tables import read_scores, read_suites
from rtdmd.prompts.records import read_prompts
from rtdmd.rewards import reward_models
from rtdmd.rewards.registration import RewardParams
from rtdmd.stages import cache_teacher, evaluate, prepare_prompts, publish, report
from tests.alive import transformers_alive
from tests.report.pages import assert_stands_alone
from tests.workspace import make_workspace, set_params

SCORES = ("strict", "lenient", "soft", "clipscore", "world_verifier")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_clip: Path) -> Path:
    """A workspace in which everything after training has run once."""
    root = tmp_path_factory.mktemp("results")
    make_workspace(root, tiny_teacher, tiny_clip)
    for stage in (prepare_prompts, cache_teacher, evaluate, report, publish):
        stage.run(root)
    return root


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Path:
    """A copy of the workspace to change."""
    shutil.copytree(root, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def heldout(root: Path) -> dict[str, Any]:
    """The one suite of the workspace's metrics.json."""
    found: dict[str, Any] = read_json(root / "results/evaluate/metrics.json")["suites"]["heldout"]
    return found


def test_metrics_hold_every_model_and_the_real_images(root: Path) -> None:
    whole = read_json(root / "results/evaluate/metrics.json")
    assert whole["order"] == ["heldout"]
    metrics = whole["suites"]["heldout"]
    sizes = {name: metrics[name] for name in ("prompts", "resolution", "trained_resolution")}
    assert sizes == {"prompts": 16, "resolution": 36, "trained_resolution": 36}
    own = [name for name in metrics if name not in ("paired", "etas", "auc", "frontier", *sizes)]
    cost = {name: metrics[name]["network_evaluations"] for name in own}
    assert cost == {"teacher": 6, "teacher_few_step": 8, "train_acdmd": 4, "train_rtdmd": 4, "reference": 0}
    assert metrics["teacher"]["images"] == 24
    real = metrics["reference"]
    assert (real["strict"]["mean"], real["lenient"]["mean"], real["diversity"], real["clutter"]) == (1.0, 1.0, 1.0, 0.0)
    assert real["frechet"] < metrics["train_rtdmd"]["frechet"]
    pair = metrics["paired"]["train_rtdmd-train_acdmd"]["clipscore"]
    difference = metrics["train_rtdmd"]["clipscore"]["mean"] - metrics["train_acdmd"]["clipscore"]["mean"]
    assert pair["mean"] == pytest.approx(difference, abs=2e-6)
    assert pair["mean"] != 0  # stage two's adapter sits on stage one's and changes the images


MEASURED = ("teacher", "teacher_few_step", "train_acdmd", "train_rtdmd", "teacher_law")


def test_every_model_has_its_divergence_from_the_teachers_law(root: Path) -> None:
    """metrics.json has what parses.csv gives, and the page shows it."""
    metrics = heldout(root)
    parses = {name: read_parses(root / "results/evaluate/parses.csv", "heldout", name) for name in MEASURED}
    distribution = parses.pop("teacher_law")
    teacher = parses["teacher"]
    keys = [set(zip(one.prompts.tolist(), one.indices.tolist(), strict=True)) for one in (distribution, teacher)]
    assert len(distribution) == len(teacher) == 24 and not keys[0] & keys[1]
    again = frontier(parses, distribution, load_params(root / "params.yaml").run.seed)
    found = metrics["frontier"]
    distances = [own.pop("tilted_frechet") for own in found["models"].values()]
    assert found == again and all(value > 0 for value in distances)
    assert found["models"]["train_rtdmd"]["reward"] == metrics["train_rtdmd"]["strict"]
    assert set(metrics["auc"]) == set(parses) and set(metrics["auc"]["teacher"]) == {"clipscore"}
    rows = read_scores(root / "results/evaluate/scores.csv", "train_acdmd", "heldout")
    assert parses["train_acdmd"].right.tolist() == (rows.columns["strict"] == 1).tolist()
    page = (root / "results/report/index.html").read_text(encoding="utf-8")
    assert "<h2>Reward against divergence</h2>" in page and '<th scope="col">Excess</th>' in page
    assert "<h2>What a score alone tells</h2>" in page and "CLIP score on images of: Stage two (RTDMD)" in page


def test_a_law_with_too_few_images_is_refused_before_sampling(copy: Path) -> None:
    suite = {"name": "heldout", "prompts": "heldout", "images_per_tag": 4, "teacher_images": 6}
    set_params(copy, {"evaluate": {"suites": [suite]}})
    with pytest.raises(UserError, match=r"evaluate\.suites: heldout: teacher_images: 6 leaves .* allowed: from \d+ on"):
        evaluate.run(copy)


def test_what_the_scorers_were_stands_beside_the_metrics(root: Path) -> None:
    assert read_json(root / "results/evaluate/metrics.json").keys() == {"order", "suites"}
    scorers = read_json(root / "results/evaluate/scorers.json")
    assert scorers.keys() == {"clipscore", "world_verifier", "features"}
    assert scorers["features"] == scorers["clipscore"]
    weights = root / "data/world/clip/model.safetensors"
    assert scorers["clipscore"]["files"]["model.safetensors"] == sha256_file(weights)
    assert (scorers["clipscore"]["template"], scorers["clipscore"]["version"]) == ("{prompt}", 1)
    assert scorers["world_verifier"]["soft_weight"] == preset("smoke").evaluate.rewards[1].soft_weight


def test_the_student_is_scored_at_the_other_values_of_eta_too(root: Path, copy: Path) -> None:
    """One student on one set of prompts and noise: what one run calls another level, a run at that level calls its
    own."""
    metrics = heldout(root)
    assert list(metrics["etas"]) == ["0", "1"]
    euler = metrics["etas"]["0"]
    assert (euler["images"], euler["network_evaluations"]) == (24, 4)
    difference = euler["clipscore"]["mean"] - metrics["train_rtdmd"]["clipscore"]["mean"]
    assert euler["minus_trained"]["clipscore"]["mean"] == pytest.approx(difference, abs=2e-6)
    assert difference != 0
    rows = read_scores(root / "results/evaluate/scores.csv", "train_rtdmd_eta_0", "heldout")
    assert rows.overall("clipscore").mean == pytest.approx(euler["clipscore"]["mean"], abs=1e-5)
    set_params(copy, {"model": {"eta": 1.0}})
    with pytest.raises(UserError, match=r"was trained with model\.eta: 0\.9, params\.yaml says 1\.0; set"):
        evaluate.run(copy)
    for stage in ("train_acdmd", "train_rtdmd"):  # as if both had been trained at that level
        record = read_json(copy / "results" / stage / "resolved.json")
        record["params"]["model"]["eta"] = 1.0
        write_json(copy / "results" / stage / "resolved.json", record)
    evaluate.run(copy)
    at_one = heldout(copy)
    assert list(at_one["etas"]) == ["0"]
    own = {key: value for key, value in metrics["etas"]["1"].items() if key != "minus_trained"}
    assert own == at_one["train_rtdmd"]
    assert at_one["etas"]["0"]["frechet"] == euler["frechet"]


def test_scores_agree_with_the_metrics(root: Path) -> None:
    metrics = heldout(root)
    scores = read_scores(root / "results/evaluate/scores.csv", "train_acdmd", "heldout")
    assert tuple(scores.columns) == SCORES
    for name in SCORES:
        assert scores.overall(name).mean == pytest.approx(metrics["train_acdmd"][name]["mean"], abs=1e-5)


def test_same_inputs_same_bytes(root: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the models are held one after the other."""
    with transformers_alive(monkeypatch, SD3Transformer2DModel) as alive:
        evaluate.run(copy)
    assert len(alive) >= 2 * len(load_params(copy / "params.yaml").evaluate.models) and set(alive) == {0}
    publish.run(copy)
    for name in ("evaluate", "publish"):
        for path in (root / "results" / name).rglob("*.*"):
            again = copy / path.relative_to(root)
            assert again.read_bytes() == path.read_bytes(), path.name


def test_batch_size_changes_nothing(root: Path) -> None:
    params = load_params(root / "params.yaml")
    key = cache_key(params.model, {"eval": root / "results/prepare_prompts/eval.jsonl"}, root)
    cache = TextCache.open(root / f"{FOLDER}/embeddings.safetensors", root / f"{FOLDER}/index.json", key)
    items = plan_images(read_prompts(root / "results/prepare_prompts/eval.jsonl"), 2)
    sampler = load_sampler("train_rtdmd", params, cache, torch.device("cpu"), root)
    one, other = (
        torch.cat([images for _, images in model_images(sampler, items, cache, seed=5, batch_size=size)])
        for size in (12, 5)
    )
    assert one.shape == (12, 3, 36, 36)
    assert (one - other).abs().max() < 1e-5
    real = [torch.cat([images for _, images in world_images(items, 5, "plan", size)]) for size in (12, 5)]
    assert torch.equal(*real)


def test_a_grid_that_is_declared_and_not_evaluated_is_said_before_sampling(copy: Path) -> None:
    set_params(copy, {"evaluate": {"models": ["teacher", "teacher_few_step", "train_acdmd"], "etas": []}})
    with pytest.raises(UserError, match=r"evaluate\.models .* differ by train_rtdmd"):
        evaluate.run(copy)


def test_without_reference_and_features_only_the_scores_remain(copy: Path) -> None:
    clip = {"name": "clipscore", "model": "data/world/clip"}
    plain = {"name": "heldout", "prompts": "heldout", "images_per_tag": 4}
    set_params(copy, {"evaluate": {"suites": [plain], "rewards": [clip], "features_model": None}})
    evaluate.run(copy)
    metrics = heldout(copy)
    assert "reference" not in metrics
    found = set(metrics["train_rtdmd"])
    assert found == {"images", "steps", "network_evaluations", "clipscore", "per_tag"}
    report.run(copy)
    page = (copy / "results/report/index.html").read_text(encoding="utf-8")
    assert "CLIP score by tag" in page
    assert "What was drawn" not in page


SUITES = [
    {"name": "heldout", "prompts": "heldout", "images_per_tag": 4, "reference_images": 24, "teacher_images": 24},
    {
        "name": "small",
        "prompts": "heldout",
        "rewards": ["clipscore"],
        "images_per_prompt": 2,
        "max_prompts": 6,
        "resolution": 24,
    },
]


def test_two_suites_on_one_set_of_scorers(root: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite that stood alone keeps its values; the other has its own size, scorers and prompts; the page shows
    both; each scorer is loaded once."""
    names = []
    load = reward_models.load_reward

    def counted(spec: RewardParams, *where: Any) -> Any:
        names.append(spec.name)
        return load(spec, *where)

    monkeypatch.setattr(reward_models, "load_reward", counted)
    set_params(copy, {"evaluate": {"suites": SUITES}})
    evaluate.run(copy)
    assert names == ["clipscore", "world_verifier"]
    metrics = read_json(copy / "results/evaluate/metrics.json")
    assert metrics["order"] == ["heldout", "small"]
    assert metrics["suites"]["heldout"] == heldout(root)
    small = metrics["suites"]["small"]
    assert (small["prompts"], small["resolution"], small["trained_resolution"]) == (6, 24, 36)
    assert (
        set(small["train_rtdmd"]["per_tag"]) == {"clipscore"} and len(small["train_rtdmd"]["per_tag"]["clipscore"]) == 6
    )
    assert small["train_rtdmd"]["images"] == 12 and "reference" not in small and "frechet" not in small["teacher"]
    assert set(small["paired"]) == set(heldout(root)["paired"]) and list(small["etas"]) == ["0", "1"]
    rows = read_suites(copy / "results/evaluate/scores.csv", "teacher")
    assert {name: (len(own.prompts), tuple(own.columns)) for name, own in rows.items()} == {
        "heldout": (24, SCORES),
        "small": (12, ("clipscore",)),
    }
    report.run(copy)
    page = (copy / "results/report/index.html").read_text(encoding="utf-8")
    for text in ("<h2>All suites</h2>", "<h2>Results: heldout</h2>", "<h2>Results: small</h2>", "CLIP score (small)"):
        assert text in page
    assert "Images of 24 pixels; trained at 36." in page and page.count("trained at 36") == 1


def test_a_suite_that_cannot_be_drawn_or_has_no_prompt_writes_nothing(copy: Path) -> None:
    before = {path: path.read_bytes() for path in (copy / "results/evaluate").iterdir()}
    for resolution, says in ((30, "30 is not a multiple of 12"), (48, "48 is more than 36, the largest")):
        set_params(copy, {"evaluate": {"suites": [SUITES[0], SUITES[1] | {"resolution": resolution}]}})
        with pytest.raises(UserError, match=rf"^evaluate\.suites: small: resolution: {says}"):
            evaluate.run(copy)
    sets = {"other": [{"name": "world", "split": "heldout"}]}
    changes = {"suites": [SUITES[0], SUITES[1] | {"prompts": "other"}]}
    set_params(copy, {"prepare_prompts": {"sets": sets}, "evaluate": changes})
    with pytest.raises(
        UserError, match=r"^evaluate\.suites: small: results/prepare_prompts/eval\.jsonl has no prompt of"
    ):
        evaluate.run(copy)
    assert {path: path.read_bytes() for path in (copy / "results/evaluate").iterdir()} == before


def test_a_published_folder_is_a_model_of_the_tables(copy: Path) -> None:
    """The folder that publish wrote of the student, judged as an imported one: the student's own images, up to the
    rounding of one stacked adapter instead of two. Another base is refused."""
    (copy / "results/publish").rename(copy / "imported")
    text = (copy / "dvc.yaml").read_text(encoding="utf-8")
    grids = {name: f"      - results/evaluate/grid_{name}.png\n" for name in ("teacher_few_step", "train_acdmd")}
    text = text.replace(grids["teacher_few_step"], grids["teacher_few_step"].replace("teacher_few_step", "imported"))
    (copy / "dvc.yaml").write_text(text.replace(grids["train_acdmd"], ""), encoding="utf-8")
    models = ["teacher", "imported", "train_rtdmd"]
    plain = [{"name": "heldout", "prompts": "heldout", "images_per_tag": 2}]
    changes = {"models": models, "imported": "./imported", "etas": [], "suites": plain}
    set_params(copy, {"evaluate": changes})
    evaluate.run(copy)
    found = heldout(copy)
    assert found["imported"]["network_evaluations"] == 4
    assert found["imported"]["clipscore"]["mean"] == pytest.approx(found["train_rtdmd"]["clipscore"]["mean"], abs=1e-3)
    assert abs(found["paired"]["imported-teacher"]["clipscore"]["mean"]) > 1e-3
    inputs = read_json(copy / "results/evaluate/resolved.json")["inputs"]
    assert len(inputs["./imported"]) == 64
    record = read_json(copy / "imported/provenance.json")
    record["teacher"]["sha256"] = "0" * 64
    write_json(copy / "imported/provenance.json", record)
    with pytest.raises(
        UserError, match=r"^evaluate\.imported: .*imported is based on data/world/teacher, revision None; a"
    ):
        evaluate.run(copy)


def test_pictures_show_the_asked_prompts(root: Path) -> None:
    sheet = Image.open(root / "results/evaluate/contact_sheet.png")
    grids = [Image.open(root / f"results/evaluate/grid_{name}.png") for name in ("teacher", "train_rtdmd")]
    assert grids[0].size == grids[1].size == (2 * 114 + 6, 4 * 114 + 6)
    assert sheet.width > 4 * grids[0].width


def test_the_page_needs_nothing_else(root: Path) -> None:
    page = (root / "results/report/index.html").read_text(encoding="utf-8")
    assert_stands_alone(page)
    assert len(page) < 2e6
    for title in (
        "Samples",
        "Results",
        "Strict score by tag",
        "Paired differences",
        "Stochasticity of the sampler",
        "Training curves",
        "Watched while training",
        "Settings",
        "Provenance",
    ):
        assert f"<h2>{title}</h2>" in page
    strict = heldout(root)["teacher"]["clipscore"]["mean"]
    assert f"{strict:.3f}" in page
    assert "η = 0 minus η = 0.9" in page
    assert page.count("<svg") == 8  # the tags, the frontier, two curves and one watched score for each stage


def test_the_page_is_the_same_for_the_same_inputs_and_shows_the_image_log(copy: Path) -> None:
    """Two runs with a panel of each stage; the smoke run's own had none."""
    before = (copy / "results/report/index.html").read_text(encoding="utf-8")
    for stage in ("train_acdmd", "train_rtdmd"):
        with zipfile.ZipFile(copy / "results" / stage / "image_log.zip", "w") as log:
            log.writestr("image-log-00000002.png", png_bytes(np.full((30, 40, 3), 7, np.uint8)))
    pages = []
    for _ in range(2):
        report.run(copy)
        pages.append((copy / "results/report/index.html").read_bytes())
    assert pages[0] == pages[1]
    assert "Image log" not in before and b"Stage two (RTDMD) after 2 epochs" in pages[0]


def test_the_cards_snippet_runs_as_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    card = (root / "results/publish/README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, "README.md", "exec"), names)
    for name in ("sample.png", "sample_cps.png"):
        assert Image.open(root / name).size == (36, 36)
        (root / name).unlink()


def test_provenance_names_settings_inputs_and_weights(root: Path) -> None:
    record = json.loads((root / "results/publish/provenance.json").read_text(encoding="utf-8"))
    assert record["adapter"]["rank"] == record["adapter"]["alpha"] == 8
    assert record["sampling"]["sigmas"] == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    assert record["settings"]["train_rtdmd"]["epochs"] == 2
    assert len(record["inputs"]["publish"]["results/train_rtdmd/generator.safetensors"]) == 64
    weights = sha256_file(root / "data/world/clip/model.safetensors")
    assert record["scorers"][0]["identity"]["files"]["model.safetensors"] == weights
    assert set(record["inputs"]) == {"train_acdmd", "train_rtdmd", "evaluate", "publish"}
