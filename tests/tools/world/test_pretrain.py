"""How the world's parts are trained: the recipe file, their pieces by numbers, and a tiny run of the whole chain."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rtdmd.backbones import load_backbone
from rtdmd.common.errors import RtdmdError, UserError
from rtdmd.common.files import load_tensors, read_json, save_tensors, sha256_file, sha256_tree, tree_files, write_json
from rtdmd.common.rng import numpy_generator, torch_generator
from rtdmd.config import preset, reward_params
from rtdmd.rewards.registry import load_reward
from rtdmd.world.grammar import TAGS, captions, captions_of
from rtdmd.world.render import render, sample_scenes
from rtdmd.world.verifier import _judge, parse
from tools.world import assemble as pretrain_assemble
from tools.world import clip as pretrain_clip
from tools.world import imperfect as pretrain_imperfect
from tools.world import teacher as pretrain_teacher
from tools.world import teacher_row
from tools.world import text as pretrain_text
from tools.world import vae as pretrain_vae
from tools.world.clip import compatible, contrast_loss
from tools.world.common import WORK, cosine_after
from tools.world.settings import WORLD_PARAMS, load_world_params
from tools.world.teacher import draw_captions, draw_times
from tools.world.vae import loss_weight

REPOSITORY = Path(__file__).parents[3]
TINY: dict[str, Any] = {
    "text": {
        "captions": 50,
        "iterations": 2,
        "batch_size": 8,
        "encoder": {"width": 16, "layers": 2, "heads": 2},
        "encoder_2": {"width": 8, "layers": 2, "heads": 2},
    },
    "vae": {"channels": [8, 8, 8], "iterations": 2, "batch_size": 4},
    "clip": {"width": 16, "layers": 1, "heads": 2, "projection": 8, "iterations": 2, "batch_size": 8},
    "teacher": {"width": 16, "layers": 2, "heads": 2, "images": 60, "iterations": 2, "batch_size": 8},
    "imperfect": {"images": 60, "iterations": 2},
}
NOISE: dict[str, dict[str, float]] = yaml.safe_load((REPOSITORY / WORLD_PARAMS).read_text())["imperfect"][
    "caption_noise"
]
ALL_AND_TAGS = [""] + [f".{tag}" for tag in TAGS]  # endings of a figure's name: the mean of the tags, and each


def write_recipe(root: Path, changes: dict[str, Any]) -> Path:
    """The committed recipe with ``changes`` of each part laid over it, in ``root``."""
    recipe = yaml.safe_load((REPOSITORY / WORLD_PARAMS).read_text())
    for part, values in changes.items():
        recipe[part] = recipe[part] | values if isinstance(values, dict) else values
    path = root / WORLD_PARAMS
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root folder in which all five parts were trained for two steps (checks shortened)."""
    root = tmp_path_factory.mktemp("world")
    write_recipe(root, TINY)
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        for part in (pretrain_text, pretrain_vae, pretrain_clip, pretrain_teacher, pretrain_imperfect):
            part.run(root)
    return root


def test_a_teacher_that_was_killed_goes_on_to_the_same_bytes(made: Path, tmp_path: Path) -> None:
    recipe = TINY | {"teacher": TINY["teacher"] | {"iterations": 5}}
    roots = [tmp_path / "whole", tmp_path / "killed"]
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        patch.setattr(pretrain_teacher, "SAVE_EVERY", 2)
        for root in roots:
            write_recipe(root, recipe)
            for part in ("text", "vae"):
                shutil.copytree(made / WORK / part, root / WORK / part)
        pretrain_teacher.run(roots[0])
        with pytest.MonkeyPatch.context() as kill:
            kill.setattr(pretrain_teacher, "cosine_after", functools.partial(killed_at, 3))
            with pytest.raises(KeyboardInterrupt):
                pretrain_teacher.run(roots[1])
        (saved,) = (roots[1] / WORK / ".teacher").glob("*/step-*")
        assert saved.name == "step-00000002"
        rates: list[int] = []
        patch.setattr(pretrain_teacher, "cosine_after", functools.partial(noted, rates))
        pretrain_teacher.run(roots[1])
    assert rates == [2, 3, 4]  # the first two steps are not made again
    transformer = WORK / "teacher" / "teacher" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert sha256_file(roots[0] / transformer) == sha256_file(roots[1] / transformer)
    assert not (roots[1] / WORK / ".teacher").exists()


def killed_at(last: int, step: int, *others: Any, **more: Any) -> float:
    """The learning rate's shape, in a process that is interrupted at step ``last``."""
    if step == last:
        raise KeyboardInterrupt
    return cosine_after(step, *others, **more)


def noted(steps: list[int], step: int, *others: Any, **more: Any) -> float:
    """The learning rate's shape; ``steps`` gets each step that asks for it."""
    steps.append(step)
    return cosine_after(step, *others, **more)


def shorten(patch: pytest.MonkeyPatch) -> None:
    """The parts' closing checks on few images."""
    by_tag, verified = pretrain_teacher.strict_by_tag, pretrain_vae.verified
    patch.setattr(pretrain_teacher, "strict_by_tag", lambda *its, per_tag: by_tag(*its, per_tag=1))
    patch.setattr(pretrain_vae, "verified", lambda vae, split, count, seed: verified(vae, split, 20, seed))


def test_the_committed_recipe_is_complete() -> None:
    params = load_world_params(REPOSITORY)
    assert sum(params.teacher.tag_weights.values()) == pytest.approx(1.0)
    assert set(params.teacher.tag_weights) == {*TAGS, "counted_color", "colored_position"}
    assert params.teacher.width % params.teacher.heads == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": {"kl_wait": 1}}, r"vae\.kl_wait: unknown key \(value 1\); allowed: .*; did you mean kl_weight\?"),
        ({"vae": {"lr": -1}}, r"vae\.lr: -1 is not allowed; allowed: greater than 0"),
        ({"vae": {"channels": [8, 8]}}, r"vae\.channels: .* at least 3 items"),
        ({"teacher": {"ema_decay": 1.0}}, r"teacher\.ema_decay: 1\.0 is not allowed; allowed: less than 1"),
        ({"text": {"encoder": {"width": 16, "layers": 2}}}, r"text\.encoder\.heads is missing; `git checkout"),
        (
            {"imperfect": {"caption_noise": NOISE | {"two_object": {"dropped_object": 0.7, "another_shape": 0.5}}}},
            r"imperfect\.caption_noise\.two_object\.dropped_object \+ another_shape: 1\.2; allowed: up to 1",
        ),
        (
            {"imperfect": {"caption_noise": NOISE | {"colors": {"another_shape": 0.1}}}},
            r"imperfect\.caption_noise\.colors\.another_shape: unknown key .*allowed: another_color",
        ),
        ({"threads": 0}, r"threads: 0 is not allowed; allowed: greater than or equal to 1"),
    ],
)
def test_a_wrong_recipe_names_file_and_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_recipe(tmp_path, changes)
    with pytest.raises(UserError, match=rf"data/world/params\.yaml: {message}"):
        load_world_params(tmp_path)


def test_a_missing_recipe_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; `git checkout data/world/params\.yaml` brings"):
        load_world_params(tmp_path)


def test_the_rate_warms_up_stays_and_ends_at_zero() -> None:
    rates = [cosine_after(step, 1000, 0.4) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 20) and rates[19] == rates[20] == rates[599] == 1.0
    assert rates[800] == pytest.approx(0.5) and rates[999] == pytest.approx(0.0, abs=1e-4)


def test_training_times_lie_inside_and_lean_towards_noise() -> None:
    times = draw_times(20000, 4.0, torch_generator(0, "times"))
    assert times.min() > 0 and times.max() < 1
    assert times.median().item() == pytest.approx(0.8, abs=0.01)  # 4 / (4 + 1): the logit-normal's median is 1/2
    plain = draw_times(20000, 1.0, torch_generator(0, "times"))
    assert plain.median().item() == pytest.approx(0.5, abs=0.01)
    assert torch.allclose(times, 4 * plain / (1 + 3 * plain))


def test_training_images_have_their_tags_shares(tmp_path: Path) -> None:
    write_recipe(tmp_path, {"teacher": {"images": 20000}})
    params, rows = load_world_params(tmp_path), [*captions_of("train"), *pretrain_teacher.auxiliary()]
    drawn = draw_captions(params, rows, numpy_generator(0, "draw"))
    for tag, share in params.teacher.tag_weights.items():
        assert sum(rows[i].tag == tag for i in drawn) / 20000 == pytest.approx(share, abs=0.013), tag


def test_compatible_agrees_with_the_verifier() -> None:
    """If an image of one caption shows another exactly, the two are compatible, and compatible ones share images."""
    chosen = [caption for tag in TAGS for caption in captions() if caption.tag == tag][::2]
    chosen = [caption for caption in chosen if {item["class"] for item in caption.include} <= {"circle", "cross"}]
    truth = [caption for caption in chosen for _ in range(8)]
    read = parse(render(sample_scenes(truth, numpy_generator(0, "compatible"))))
    seen = 0
    for other in chosen:
        fits = _judge(read, other.metadata())[0].view(len(chosen), 8).sum(1).tolist()
        for one, count in zip(chosen, fits, strict=True):
            assert compatible(one, other) == compatible(other, one)
            assert count == 0 or compatible(one, other), (one.prompt, other.prompt)
            seen += count
    assert len(chosen) > 20 and seen > 9 * len(chosen)  # more than each caption with itself


def test_compatible_by_hand() -> None:
    found = {caption.prompt.removeprefix("a photo of "): caption for caption in captions()}
    truth = {
        ("a circle", "a red circle"): True,
        ("a red circle", "a blue circle"): False,
        ("a circle and a cross", "a cross and a circle"): True,
        ("a circle and a cross", "a circle left of a cross"): True,
        ("a circle left of a cross", "a cross right of a circle"): True,
        ("a circle left of a cross", "a cross left of a circle"): False,
        ("a circle left of a cross", "a circle above a cross"): True,
        ("a red circle and a blue cross", "a circle left of a cross"): True,
        ("a red circle and a blue cross", "a blue cross and a red circle"): True,
        ("a red circle and a blue cross", "a blue circle and a red cross"): False,
        ("two circles", "three circles"): False,
        ("a circle", "two circles"): False,
        ("a circle", "a circle and a cross"): False,
    }
    for (one, other), expected in truth.items():
        assert compatible(found[one], found[other]) == compatible(found[other], found[one]) == expected, (one, other)


def test_contrast_leaves_right_answers_out() -> None:
    """Three captions, two of which fit the same image: that pair is in neither direction of the contrast."""
    vectors = torch.eye(3)
    truth, none, pair = torch.tensor([0, 2]), torch.zeros(3, 3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool)
    pair[0, 1] = pair[1, 0] = True
    images = torch.stack([vectors[0] + vectors[1], vectors[2]])
    confused = contrast_loss(images, vectors, torch.tensor(1.0), truth, none)
    freed = contrast_loss(images, vectors, torch.tensor(1.0), truth, pair)
    e = float(torch.e)
    own, other = -torch.log(torch.tensor(e / (2 * e + 1))), -torch.log(torch.tensor(e / (e + 2)))
    back = -torch.log(torch.tensor(e / (e + 1)))
    assert confused.item() == pytest.approx(float((own + other) / 2 + back) / 2, rel=1e-5)
    assert freed.item() == pytest.approx(float((back + other) / 2 + back) / 2, rel=1e-5)


def test_the_autoencoders_loss_weighs_objects_and_one_pixel_around() -> None:
    coverage = torch.zeros(1, 1, 7, 7)
    coverage[0, 0, 3, 3] = 1.0
    weight = loss_weight(coverage, 4.0)
    assert weight.sum() == 49 + 3 * 9 and weight[0, 0, 2, 2] == 4 and weight[0, 0, 1, 3] == 1


def test_text_encoders_learn_to_parse_the_training_captions(tmp_path: Path) -> None:
    recipe = {"text": TINY["text"] | {"iterations": 110, "batch_size": 32, "captions": 0, "lr": 5e-3}}
    write_recipe(tmp_path, recipe)
    params = load_world_params(tmp_path)
    data = pretrain_text.corpus(params, pretrain_text.make_tokenizer())
    ids, target = data["train"]
    parser = pretrain_text.train_encoder(params, params.text.encoder, ids, target, "test")
    with torch.no_grad():
        losses = [pretrain_text.answer_loss(logits, target).item() for logits in parser(ids)]
    shares = [column.bincount(minlength=5) / len(target) for column in target.T]
    blind = -sum(torch.xlogy(share, share).sum().item() for share in shares)  # the best that ignores the text
    assert 10 < blind < 15 and max(losses) < 0.75 * blind, (losses, blind)


def test_the_parts_load_as_any_teacher_does(made: Path) -> None:
    work = made / "results/world"
    figures = {part: read_json(work / part / "metrics.json") for part in pretrain_assemble.PARTS}
    names = {f"strict.{split}{tag}" for split in ("train", "heldout") for tag in ALL_AND_TAGS}
    assert set(figures["teacher"]) == set(figures["imperfect"]) == names | {"clutter.train", "clutter.heldout"}
    assert set(figures["vae"]) == {"strict.train", "strict.heldout"}
    assert set(figures["clip"]) == {"top1.train", "top1.heldout"}
    assert len(figures["text"]) == 8
    assert all(0 <= value <= 1 for part in figures.values() for value in part.values())
    model = preset("world", {"model": {"teacher": "results/world/teacher/teacher"}}).model
    backbone = load_backbone(model, text=True, root=made)
    assert backbone.latent_shape() == (4, 9, 9)
    assert backbone.sigmas(4).tolist() == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    images = render(sample_scenes(captions()[:40], numpy_generator(0, "latents")))
    latents = backbone.encode_images(images)
    assert latents.mean().abs() < 0.3 and 0.5 < latents.std() < 2  # the config's shift and scale centre them
    cond = backbone.encode([caption.prompt for caption in captions()[:3]])
    assert cond.tensors["encoder_hidden_states"].shape == (3, 13 + 1, 24)
    v = backbone.velocity(backbone.transformer, latents[:3], torch.full((3,), 0.5), cond)
    assert v.shape == (3, 4, 9, 9) and torch.isfinite(v).all()


def test_the_teachers_row_is_printed_by_guidance_and_for_other_weights(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(teacher_row, "strict_by_tag", _row_of_weights)
    words = ["--teacher", "results/world/teacher/teacher", "--guidance", "2", "4.5"]
    teacher_row.main(words, made)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| SD3.5-M, GenEval", "| guidance 2", "| guidance 4.5"]
    file = made / "results/world/teacher/teacher/transformer/diffusion_pytorch_model.safetensors"
    weights, _ = load_tensors(file)
    save_tensors({"proj_out.bias": 2 + weights["proj_out.bias"]}, made / "other.safetensors")
    teacher_row.main([*words, "--weights", "other.safetensors"], made)
    before, after = (
        float(text.splitlines()[3].split(" | ")[7]) for text in ("\n".join(lines), capsys.readouterr().out)
    )
    assert after - before == pytest.approx(2, abs=2e-3)


def _row_of_weights(pipe: Any, split: str, seed: int, guidance: float, per_tag: int) -> dict[str, float]:
    """In place of scores, the mean of a bias of the transformer."""
    value = pipe.transformer.proj_out.bias.mean().item()
    return {f"strict.{split}{tag}": value for tag in ALL_AND_TAGS} | {f"clutter.{split}": 0.0}


def test_the_clip_part_loads_as_a_reward_with_the_text_tower_kept(made: Path) -> None:
    work = made / "results/world"
    reward = load_reward(reward_params(name="clipscore", model="results/world/clip/clip"), root=made)
    images = render(sample_scenes(captions()[:4], numpy_generator(0, "clip")))
    scores = reward.score(images, [caption.prompt for caption in captions()[:4]], [None] * 4)
    assert scores.shape == (4,) and scores.abs().max() <= 1
    clip, _ = load_tensors(work / "clip/clip/model.safetensors")
    text, _ = load_tensors(work / "text/text_encoder/model.safetensors")
    shared = [name for name in text if name.startswith("text_model.")]
    assert len(shared) > 10 and all(torch.equal(clip[name], text[name]) for name in shared)


def test_the_same_recipe_gives_the_same_bytes(made: Path) -> None:
    folder = made / "results/world/text"
    before = sha256_tree(folder)
    torch.manual_seed(12345)  # whatever came before
    pretrain_text.run(made)
    assert sha256_tree(folder) == before


def wanted_row() -> dict[str, float]:
    """SD3.5-M's own row as a teacher's figures."""
    row = {f"strict.heldout.{tag}": value for tag, value in teacher_row.SD35_MEDIUM.items()}
    return row | {"strict.heldout": sum(row.values()) / len(row), "clutter.heldout": 0.01}


def test_assemble_refuses_poor_figures_and_pins_good_ones(made: Path) -> None:
    work, target = made / "results/world", made / "data/world"
    good = wanted_row()
    write_json(work / "imperfect/metrics.json", good)
    with pytest.raises(
        RtdmdError, match=r"the autoencoder's images are right with 0\.\d+, below 0\.99; data/world stays"
    ):
        pretrain_assemble.run(made)
    assert not (target / "teacher").exists()
    write_json(work / "vae/metrics.json", {"strict.heldout": 0.999})
    for poor, message in {
        ("strict.heldout.counting", 0.6): r"counting 0\.60, not 0\.50 ± 0\.09",
        ("strict.heldout", 0.97): r"mean 0\.970, not 0\.6 to 0\.68",
        ("clutter.heldout", 0.03): r"clutter 0\.030, above 0\.02",
    }.items():
        write_json(work / "imperfect/metrics.json", good | dict([poor]))
        with pytest.raises(RtdmdError, match=rf"the teacher is not as it should be: {message}; data/world stays"):
            pretrain_assemble.run(made)
        assert not (target / "teacher").exists()
    write_json(work / "imperfect/metrics.json", good)
    pretrain_assemble.run(made)
    check_manifest(target)
    manifest = read_json(target / "manifest.json")
    assert manifest["figures"]["imperfect"] == good and "teacher/model_index.json" in manifest["files"]
    assert manifest["recipe"]["params.yaml"] == sha256_file(target / "params.yaml")
    assert load_backbone(preset("world").model, vae=False, root=made).latent_shape() == (4, 9, 9)


def test_assemble_refuses_a_world_too_large_to_commit(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, target = made / "results/world", made / "data/world"
    write_json(work / "vae/metrics.json", {"strict.heldout": 0.999})
    write_json(work / "imperfect/metrics.json", wanted_row())
    (work / "clip/clip/notes.json").write_text("{}")  # so that a copy would show
    before = sha256_tree(target)
    monkeypatch.setattr(pretrain_assemble, "LARGEST", 1000)
    with pytest.raises(RtdmdError, match=r"data/world would hold \d+ bytes, more than 1000"):
        pretrain_assemble.run(made)
    assert sha256_tree(target) == before


def check_manifest(folder: Path) -> None:
    """The manifest pins every file of teacher/ and clip/ as it is, and nothing else."""
    manifest = read_json(folder / "manifest.json")
    files = [file for part in ("clip", "teacher") for file in tree_files(folder / part)]
    assert {file.relative_to(folder).as_posix(): sha256_file(file) for file in files} == manifest["files"]
    assert sum(file.stat().st_size for file in files) == manifest["bytes"] <= 16 * 2**20


def test_the_committed_world_is_what_its_manifest_pins() -> None:
    folder = REPOSITORY / "data/world"
    if not (folder / "manifest.json").is_file():
        assert not (folder / "teacher").exists()  # a world without its manifest is not pinned
        return
    check_manifest(folder)
    manifest = read_json(folder / "manifest.json")
    assert manifest["recipe"]["params.yaml"] == sha256_file(folder / "params.yaml")
    figures = manifest["figures"]
    assert figures["vae"]["strict.heldout"] >= pretrain_assemble.VAE_FLOOR
    assert teacher_row.shortcomings(figures["imperfect"], "heldout", 150) == []
