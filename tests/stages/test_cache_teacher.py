"""Stage cache_teacher on a tiny teacher: it stores what the own encoders say, and nothing stale passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rtdmd.backbones import load_backbone
from rtdmd.config import Params
from rtdmd.errors import UserError
from rtdmd.files import read_json
from rtdmd.stage import open_stage
from rtdmd.stages import cache_teacher, prepare_prompts
from rtdmd.textcache import TextCache, open_text_cache
from tests.workspace import make_workspace, set_params

FILES = ("embeddings.safetensors", "index.json")


@pytest.fixture(scope="module")
def made(tiny_teacher: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("workspace")
    params = make_workspace(root, tiny_teacher, tiny_clip)
    prepare_prompts.run(root)
    cache_teacher.run(root)
    return root, params


def opened(root: Path, *splits: str) -> TextCache:
    """The cache as a later stage opens it."""
    with pytest.raises(InterruptedError), open_stage("evaluate", root) as stage:
        cache = open_text_cache(stage, *splits)
        raise InterruptedError  # leave before the harness asks for outputs
    return cache


def test_rows_are_the_teachers_own_encoding(made: tuple[Path, Params]) -> None:
    root, params = made
    cache = opened(root, "eval")
    prompts = ["", "a photo of a red circle", "a photo of two squares"]
    own = load_backbone(params.model, text=True, vae=False, root=root).encode(prompts)
    for name, tensor in cache.of(prompts).tensors.items():
        assert torch.allclose(tensor, own.tensors[name], atol=1e-6), name
    assert cache.rows([""]).tolist() == [0]
    assert len(cache.row_of) == len(cache.cond) == 285
    index = read_json(root / "results/cache_teacher/index.json")
    assert index["rows"] == cache.row_of and index["max_sequence_length"] == 1


def test_the_batch_size_changes_no_number_that_matters(made: tuple[Path, Params]) -> None:
    root, params = made
    backbone = load_backbone(params.model, text=True, vae=False, root=root)
    prompts = list(opened(root, "eval").row_of)[:7]
    one, all_at_once = (cache_teacher.encode_all(backbone, prompts, size) for size in (1, 7))
    for name in one.tensors:
        assert torch.allclose(one.tensors[name], all_at_once.tensors[name], atol=1e-6)


def test_running_again_gives_the_same_bytes(made: tuple[Path, Params]) -> None:
    root, _ = made
    first = [(root / "results/cache_teacher" / name).read_bytes() for name in FILES]
    cache_teacher.run(root)
    assert [(root / "results/cache_teacher" / name).read_bytes() for name in FILES] == first


def test_a_cache_of_other_params_or_encoders_is_refused(made: tuple[Path, Params]) -> None:
    root, _ = made
    set_params(root, {"model": {"max_sequence_length": 3}})
    with pytest.raises(UserError, match="max_sequence_length is 3 now, and was 1 when it was made"):
        opened_or_raise(root)
    set_params(root, {})
    file = root / "data/world/teacher/text_encoder/model.safetensors"
    weights = file.read_bytes()
    file.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match=r"encoders\.files\.text_encoder/model\.safetensors is .* now, and was"):
            opened_or_raise(root)
    finally:
        file.write_bytes(weights)
    assert len(opened(root, "eval").row_of) == 285


def opened_or_raise(root: Path) -> None:
    with open_stage("evaluate", root) as stage:
        open_text_cache(stage, "eval")
