"""Stand-ins of teachers and student bases: what is downloaded of them, that the real code loads them, and that they are
the published models in kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from rtdmd.backbones import PipelineBackbone, family_module, load_backbone, require_whole
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, sha256_tree
from rtdmd.common.pretrained import weight_headers
from rtdmd.config import preset
from rtdmd.config.real import REAL
from rtdmd.plan.published import TEACHERS
from rtdmd.rehearse.bases import stand_ins
from rtdmd.rehearse.layouts import EVERYWHERE, LAYOUTS
from rtdmd.rehearse.shrink import NARROWER
from tests.backbones.folder_hub import FolderHub, names_in
from tests.rehearse.bases import COMMIT, model_of

SD3M, SD35M, FLUX1, BASE_4B, KLEIN_4B, BASE_9B, KLEIN_9B = LAYOUTS
KEPT = (
    *("patch_size", "in_channels", "out_channels", "guidance_embeds", "qk_norm", "mlp_ratio", "eps", "rope_theta"),
    *("latent_channels", "scaling_factor", "shift_factor", "use_quant_conv", "use_post_quant_conv"),
    *("model_type", "architectures", "max_position_embeddings", "feed_forward_proj", "tie_word_embeddings"),
)
"""What the code derives of a configuration, and what stays as published."""
LEVELS = {  # K = 4 at 512 pixels, docs/configuration.md
    "sd3": [1, 0.9, 0.75, 0.5, 0],
    "flux1": [1, 0.849, 0.652, 0.385, 0],
    "flux2": [1, 0.958, 0.884, 0.717, 0],
}
PROMPT = "a photo of an astronaut riding a horse on the moon"


@pytest.fixture(scope="module")
def cache(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> FolderHub:
    """The Hub, and what was downloaded of it."""
    return FolderHub(bases, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module", params=REAL)
def loaded(request: pytest.FixtureRequest, cache: FolderHub) -> tuple[str, PipelineBackbone]:
    """A preset's name, and its backbone as cache_teacher and the stages after it load it."""
    model = model_of(request.param)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(huggingface_hub, "snapshot_download", cache)
        require_whole(model)
        return request.param, load_backbone(model, text=True)


def test_exactly_what_is_read_is_downloaded(
    loaded: tuple[str, PipelineBackbone], cache: FolderHub, bases: dict[str, Path]
) -> None:
    for base in model_of(loaded[0]).bases():
        beside = {*EVERYWHERE, *LAYOUTS[base.teacher].beside}
        there = names_in(bases[base.teacher])
        assert beside < there
        copies = {name for name in there if ".fp16" in name}
        assert bool(copies) == (base.family == "sd3")
        assert names_in(cache.cache / base.teacher) == there - beside - copies
        assert f"{base.teacher}@{COMMIT}" in cache.commits


def test_they_are_the_published_models_in_kind(loaded: tuple[str, PipelineBackbone]) -> None:
    name, backbone = loaded
    model = model_of(name)
    published = TEACHERS[model.teacher]
    ours: dict[str, dict[str, Any]] = {}
    for part in published:
        config = getattr(backbone.pipeline, part).config
        ours[part] = config.to_dict() if part.startswith("text_encoder") else dict(config)
    for part, config in published.items():
        kept = {key: config[key] for key in KEPT if key in config}
        found = {key: ours[part][key] for key in kept}
        assert found == kept, part
    assert len(ours["vae"]["block_out_channels"]) == len(published["vae"]["block_out_channels"])
    wide = family_module(model.family).text_shapes(model, published)
    cond = backbone.encode([PROMPT, ""])
    for key, (*length, width) in wide.items():
        assert cond.tensors[key].shape == (2, *length, width // NARROWER)
    multiple = family_module(model.family).latent_multiple(published["transformer"])
    channels, side, _ = backbone.latent_shape()
    assert channels == {"sd3": 16, "flux1": 16, "flux2": 128}[model.family]
    assert side == 64 // 8 // (multiple if model.family == "flux2" else 1)
    assert backbone.distilled == (model.family == "flux1")


def test_they_draw(loaded: tuple[str, PipelineBackbone]) -> None:
    name, backbone = loaded
    cond = backbone.encode([PROMPT, ""])
    x = torch.ones(1, *backbone.latent_shape())
    guidance = model_of(name).guidance
    null = cond.index([1])
    v = backbone.velocity(backbone.transformer, x, torch.tensor([0.7]), cond.index([0]), guidance=guidance, null=null)
    image = backbone.decode(v)
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all() and image.std() > 0.01
    if name.startswith("flux2"):  # the student's weights are others
        own = backbone.velocity(backbone.student, x, torch.tensor([0.7]), cond.index([0]))
        theirs = backbone.velocity(backbone.transformer, x, torch.tensor([0.7]), cond.index([0]))
        assert (own - theirs).abs().max() > 0.1


@pytest.mark.parametrize("name", ["sd35m", "flux1-dev", "flux2-klein-4b"])
def test_the_levels_are_the_published_ones(name: str, bases: dict[str, Path]) -> None:
    teacher = preset(name).model.teacher
    model = model_of(name, teacher=str(bases[teacher]), revision=None, student=None, resolution=512)
    levels = load_backbone(model, vae=False, bases="none").sigmas(4)
    assert levels.tolist() == pytest.approx(LEVELS[model.family], abs=6e-4)


def test_files_of_the_published_layout(bases: dict[str, Path]) -> None:
    assert {name for name, layout in LAYOUTS.items() if layout.gated} == {SD3M, SD35M, FLUX1, BASE_9B, KLEIN_9B}
    shards = {
        (SD35M, "text_encoder_3"): 2,
        (FLUX1, "transformer"): 3,
        (FLUX1, "text_encoder_2"): 2,
        (KLEIN_4B, "text_encoder"): 2,
        (KLEIN_9B, "text_encoder"): 4,
        (KLEIN_9B, "transformer"): 2,
    }
    for (name, part), count in shards.items():
        found = sorted(file.name for file in (bases[name] / part).glob("*-of-*") if ".fp16" not in file.name)
        stem = "diffusion_pytorch_model" if part == "transformer" else "model"
        assert found == [f"{stem}-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    clip = {"merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"}
    assert names_in(bases[SD3M] / "tokenizer") == names_in(bases[FLUX1] / "tokenizer") == clip
    assert read_json(bases[SD3M] / "tokenizer_2/tokenizer_config.json")["pad_token"] == "!"
    assert "spiece.model" in names_in(bases[FLUX1] / "tokenizer_2")
    assert "chat_template.jinja" in names_in(bases[KLEIN_9B] / "tokenizer")
    numbers = {
        (name, part): {kind for _, kind, _ in weight_headers(bases[name] / part, "model", stem).values()}
        for name, part, stem in [
            (SD3M, "transformer", "diffusion_pytorch_model"),
            (SD35M, "transformer", "diffusion_pytorch_model"),
            (SD35M, "text_encoder_3", "model"),
            (FLUX1, "text_encoder_2", "model"),
        ]
    }
    assert list(numbers.values()) == [{"F16"}, {"BF16"}, {"F16"}, {"BF16"}]
    told = {name: read_json(bases[name] / "model_index.json").get("is_distilled") for name in (BASE_4B, KLEIN_4B)}
    assert told == {BASE_4B: None, KLEIN_4B: True}


def test_the_prompt_of_the_params_takes_no_more_tokens_than_as_published(loaded: tuple[str, PipelineBackbone]) -> None:
    """Each word is one: else the gate would refuse a prompt that fits the published windows."""
    pipeline = loaded[1].pipeline
    words = len(PROMPT.split())
    assert preset(loaded[0]).publish.prompt == PROMPT
    if loaded[0].startswith("flux2"):
        assert len(pipeline.tokenizer(PROMPT).input_ids) == words
        return
    assert len(pipeline.tokenizer(PROMPT).input_ids) == words + 2
    long = pipeline.tokenizer_2 if loaded[0] == "flux1-dev" else pipeline.tokenizer_3
    assert len(long(PROMPT).input_ids) <= words + 3  # "a" is a letter after a blank


def test_a_stand_in_is_the_same_each_time_and_each_is_another(bases: dict[str, Path], tmp_path: Path) -> None:
    again = {one.repo: one for one in stand_ins(preset("flux2-klein-4b"))}
    assert list(again) == [BASE_4B, KLEIN_4B]
    for name, one in again.items():
        (tmp_path / name).mkdir(parents=True)
        one.write(tmp_path / name)
        assert sha256_tree(tmp_path / name) == sha256_tree(bases[name])
    file = "transformer/diffusion_pytorch_model.safetensors"
    assert (bases[BASE_4B] / file).read_bytes() != (bases[KLEIN_4B] / file).read_bytes()
    assert "its widths a 128th and its blocks 2 of 5" in again[BASE_4B].departs


def test_another_repository_of_a_family_has_a_recorded_ones_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    params = preset("sd35m", {"model": {"teacher": "stabilityai/other"}})
    (one,) = stand_ins(params)
    assert one.departs.endswith(f"its files are not known here, those of {SD3M} stand in")
    assert not one.gated
    monkeypatch.setattr("rtdmd.rehearse.bases.TEACHERS", {})
    with pytest.raises(UserError, match=r"^model\.teacher: no shapes of family sd3 are recorded, so stabilityai/other"):
        stand_ins(params)


def test_a_folder_of_the_users_is_rehearsed_as_it_is() -> None:
    assert stand_ins(preset("world")) == []
