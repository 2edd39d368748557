"""Stage cache_teacher on a tiny teacher: it stores what the own encoders say, goes on after a kill, keeps to its
budget, and nothing stale passes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.backbones import Conditioning, load_backbone
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, save_tensors, sha256_file
from rtdmd.conditioning.text_cache import TextCache, open_text_cache, text_encoder
from rtdmd.config import Params, preset
from rtdmd.config.data import CacheTeacherParams
from rtdmd.pipeline.stage import open_stage
from rtdmd.stages import cache_teacher, prepare_prompts, train_acdmd
from tests.train.workshop import rows_of
from tests.workspace import REPOSITORY, make_workspace, set_params

FILES = ("embeddings.safetensors", "index.json")
RESULTS = Path("results/cache_teacher")


@pytest.fixture(scope="module")
def made(tiny_teacher: Path, tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("workspace")
    params = make_workspace(root, tiny_teacher, tiny_clip)
    prepare_prompts.run(root)
    cache_teacher.run(root)
    return root, params


@pytest.fixture
def copy(made: tuple[Path, Params], tmp_path: Path) -> Path:
    """A copy of the workspace to change, with its prompts and without its cache."""
    root = tmp_path / "copy"
    shutil.copytree(made[0], root, symlinks=True, ignore=shutil.ignore_patterns("cache_teacher*"))
    return root


def opened(root: Path, *splits: str) -> TextCache:
    """The cache as a later stage opens it."""
    with pytest.raises(InterruptedError), open_stage("evaluate", root) as stage:
        cache = open_text_cache(stage, *splits)
        raise InterruptedError  # leave before the harness asks for outputs
    return cache


def opened_or_raise(root: Path) -> None:
    with open_stage("evaluate", root) as stage:
        open_text_cache(stage, "eval")


def encoded(root: Path, params: Params, prompts: Sequence[str]) -> Conditioning:
    return load_backbone(params.model, text=True, vae=False, root=root).encode(prompts)


def test_rows_are_the_teachers_own_encoding(made: tuple[Path, Params]) -> None:
    root, params = made
    cache = opened(root, "eval")
    prompts = ["", "a photo of a red circle", "a photo of two squares"]
    own = encoded(root, params, prompts)
    for name, tensor in cache.of(prompts).tensors.items():
        assert torch.allclose(tensor, own.tensors[name], atol=1e-6), name
    assert cache.rows([""]).tolist() == [0]
    assert len(cache.row_of) == len(cache.cond) == 285
    index = read_json(root / RESULTS / "index.json")
    assert index["rows"] == cache.row_of and index["max_sequence_length"] == 1
    assert index["cache_teacher"] == {"mode": "cache", "storage_dtype": "float32", "unpadded": False}


def test_the_file_is_what_encoding_all_batches_and_saving_them_gives(made: tuple[Path, Params], tmp_path: Path) -> None:
    root, params = made
    cache = opened(root, "eval")
    prompts = sorted(cache.row_of, key=cache.row_of.__getitem__)
    backbone = load_backbone(params.model, text=True, vae=False, root=root)
    batches = [backbone.encode(prompts[start : start + 64]) for start in range(0, 285, 64)]
    save_tensors(Conditioning.cat(batches).tensors, tmp_path / "all")
    assert (tmp_path / "all").read_bytes() == (root / RESULTS / FILES[0]).read_bytes()


def test_running_again_gives_the_same_bytes(made: tuple[Path, Params]) -> None:
    root, _ = made
    first = [(root / RESULTS / name).read_bytes() for name in FILES]
    cache_teacher.run(root)
    assert [(root / RESULTS / name).read_bytes() for name in FILES] == first


class Killed(BaseException):
    """As a signal would: nothing in the stage catches it."""


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    made: tuple[Path, Params], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = text_encoder(made[1].model, "cpu", copy)
    asked: list[int] = []

    def dying(prompts: Sequence[str]) -> Conditioning:
        asked.append(len(prompts))
        if len(asked) == 4:  # one to see the shapes, two batches, and then
            raise Killed
        return encode(prompts)

    monkeypatch.setattr(cache_teacher, "text_encoder", lambda *_: dying)
    with pytest.raises(Killed):
        cache_teacher.run(copy)
    assert not (copy / RESULTS / "index.json").exists()
    cache_teacher.run(copy)
    assert asked == [64, 64, 64, 64, 64, 64, 29]  # 128 of 285 prompts were not encoded again
    for name in FILES:
        assert (copy / RESULTS / name).read_bytes() == (made[0] / RESULTS / name).read_bytes()


DYING = """
import os, signal, sys
from pathlib import Path
from tests.stages.test_cache_teacher import LENGTHS, by_length, small
from rtdmd.stages.cache_teacher import embed

calls = []

def encode(prompts):
    calls.append(prompts)
    if len(calls) > 4:  # the first only looks at the shapes
        os.kill(os.getpid(), signal.SIGKILL)
    return by_length(prompts)

embed(Path(sys.argv[1]), ["a", "b"], LENGTHS, encode, small())
"""
LENGTHS = ["x" * i for i in range(20)]


def by_length(prompts: Sequence[str]) -> Conditioning:
    """An encoder of no interest."""
    return Conditioning({"hidden": torch.tensor([[[float(len(prompt)), 0.5]] for prompt in prompts])})


def small() -> CacheTeacherParams:
    return preset("world", {"cache_teacher": {"batch_size": 3}}).cache_teacher


def test_sigkill_loses_no_finished_batch(tmp_path: Path) -> None:
    """A process that is really killed: the next one goes on, and the files are those of a run in one go."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
    command = [sys.executable, "-c", DYING, str(killed)]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert read_json(killed / "progress.json")["done"] == 9
    asked: list[int] = []

    def encode(prompts: Sequence[str]) -> Conditioning:
        asked.append(len(prompts))
        return by_length(prompts)

    for folder in (killed, whole):
        assert cache_teacher.embed(folder, ["a", "b"], LENGTHS, encode, small()).done == 20
    assert asked == [3, 3, 3, 2] + [3] + [3] * 6 + [2]
    for name in ("a", "b"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


def test_the_size_is_printed_and_above_the_budget_nothing_is_written(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    set_params(copy, {"cache_teacher": {"budget_gib": 1e-4}})
    says = r"285 prompts x \d+ bytes in float32: [\d.e-]+ GiB, above cache_teacher\.budget_gib: 0\.0001; raise it, set"
    with pytest.raises(UserError, match=says):
        cache_teacher.run(copy)
    assert not list((copy / RESULTS).glob("*")) and not list(copy.glob(".rtdmd/runs/cache_teacher-*/*"))
    set_params(copy, {"cache_teacher": {"storage_dtype": "bfloat16"}})
    cache_teacher.run(copy)
    size = (copy / RESULTS / FILES[0]).stat().st_size
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "285 prompts x" in line and "bfloat16" in line]
    assert 0 < size - 285 * int(line.split(" x ")[1].split()[0]) < 4096  # the head is all that the estimate leaves out


def test_a_full_disk_is_said_before_it_is_full(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"and the disk of .* has 0 GiB; make room, set cache_teacher\.mode: on_the_fl"):
        cache_teacher.run(copy)


def test_bfloat16_halves_it_and_unpadded_leaves_the_zeros_out(made: tuple[Path, Params], copy: Path) -> None:
    set_params(copy, {"cache_teacher": {"storage_dtype": "bfloat16", "unpadded": True}})
    cache_teacher.run(copy)
    cache, whole = opened(copy, "eval"), opened(made[0], "eval")
    prompts = ["", "a photo of two squares"]
    for name, tensor in cache.of(prompts).tensors.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, whole.of(prompts).tensors[name].bfloat16())
    # the tiny teacher has no T5: its tokens are zeros, and CLIP's are padded to the transformer's width
    assert read_json(copy / RESULTS / "index.json")["layout"]["blocks"]["encoder_hidden_states"]
    sizes = [(root / RESULTS / FILES[0]).stat().st_size for root in (copy, made[0])]
    assert sizes[0] < 0.5 * sizes[1]


def test_what_only_looked_padded_is_stored_whole(made: tuple[Path, Params], tmp_path: Path) -> None:
    """The first batch says what is zero; where a later one differs, the work begins again with everything."""
    params = made[1].cache_teacher.model_copy(update={"batch_size": 2, "unpadded": True})

    def encode(prompts: Sequence[str]) -> Conditioning:
        values = [[[1.0, 0.0 if prompt < "c" else 5.0]] for prompt in prompts]
        return Conditioning({"hidden": torch.tensor(values)})

    writer = cache_teacher.embed(tmp_path, ["e"], ["", "a", "b", "c"], encode, params)
    assert writer.layout.blocks == {} and writer.done == 4
    short = cache_teacher.embed(tmp_path, ["f"], ["", "a", "b"], encode, params)
    assert short.layout.blocks == {"hidden": [(0, 1, 1)]}


def test_a_value_that_is_not_finite_names_the_prompt(made: tuple[Path, Params], tmp_path: Path) -> None:
    def encode(prompts: Sequence[str]) -> Conditioning:
        return Conditioning({"pooled": torch.tensor([[float("nan") if prompt == "b" else 1.0] for prompt in prompts])})

    with pytest.raises(UserError, match=r"the text encoders' pooled of 'b' is not finite; see model\.dtype"):
        cache_teacher.embed(tmp_path, ["e"], ["", "a", "b"], encode, made[1].cache_teacher)


def test_on_the_fly_gives_the_same_rows_from_the_encoders(made: tuple[Path, Params], copy: Path) -> None:
    set_params(copy, {"cache_teacher": {"mode": "on_the_fly"}})
    cache_teacher.run(copy)
    assert (copy / RESULTS / FILES[0]).stat().st_size < (made[0] / RESULTS / FILES[0]).stat().st_size / 100
    live, stored = opened(copy, "eval"), opened(made[0], "eval")
    prompts = ["a photo of two squares", "a photo of a red circle", "", "a photo of two squares"]
    for name, tensor in live.of(prompts).tensors.items():
        assert torch.allclose(tensor, stored.of(prompts).tensors[name], atol=1e-6)
        assert torch.allclose(live.null().tensors[name], stored.null().tensors[name], atol=1e-6)
    with pytest.raises(UserError, match="the prompt 'a photo of nothing' is not in the text cache"):
        live.of(["a photo of nothing"])


def test_training_on_the_fly_is_training_from_the_cache(copy: Path) -> None:
    """Stage one in both modes: the same losses, but for how the encoders round batches of another size."""
    curves = []
    for mode in ("cache", "on_the_fly"):
        set_params(copy, {"cache_teacher": {"mode": mode}, "train_acdmd": {"iterations": 2}})
        cache_teacher.run(copy)
        train_acdmd.run(copy)
        curves.append(rows_of((copy / "results/train_acdmd/curves.csv").read_bytes()))
    assert len(curves[0]) == 2
    for cached, live in zip(*curves, strict=True):
        assert live == pytest.approx(cached, rel=1e-4) and live["fake_ambient"] > 0


@pytest.mark.parametrize("mode", ["cache", "on_the_fly"])
def test_text_encoders_are_loaded_on_the_fly_alone(
    made: tuple[Path, Params], copy: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    set_params(copy, {"cache_teacher": {"mode": mode}})
    cache_teacher.run(copy)
    loaded: list[str] = []

    def load(*_: Any) -> None:
        loaded.append("text encoders")

    monkeypatch.setattr("rtdmd.conditioning.text_cache.text_encoder", load)
    if mode == "cache":
        opened(copy, "eval")
        assert loaded == []
    else:
        with pytest.raises(ValueError, match="284 prompts are not stored and need text encoders"):
            opened_or_raise(copy)
        assert loaded == ["text encoders"]


def test_more_files_where_dvc_yaml_declares_them(made: tuple[Path, Params], copy: Path) -> None:
    line = "      - results/cache_teacher/embeddings.safetensors\n"
    dvc = (copy / "dvc.yaml").read_text()
    three = "".join(line.replace("embeddings", f"embeddings-{i}") for i in (1, 2, 3))
    (copy / "dvc.yaml").write_text(dvc.replace(line, three))
    cache_teacher.run(copy)
    cache, whole = opened(copy, "eval"), opened(made[0], "eval")
    prompts = list(whole.row_of)[::-7]
    for name, tensor in cache.of(prompts).tensors.items():
        assert torch.equal(tensor, whole.of(prompts).tensors[name])
    held = read_json(copy / RESULTS / "index.json")["files"]
    assert [about["rows"] for about in held.values()] == [[0, 95], [95, 190], [190, 285]]
    (copy / "dvc.yaml").write_text(dvc.replace(line, three, 1))
    with pytest.raises(
        UserError, match=r"stage evaluate reads results/cache_teacher/embeddings-1\.safetensors without"
    ):
        (copy / RESULTS / FILES[0]).touch()
        opened_or_raise(copy)


def test_a_cache_of_other_params_or_encoders_is_refused(made: tuple[Path, Params]) -> None:
    root, _ = made
    set_params(root, {"model": {"max_sequence_length": 3}})
    with pytest.raises(UserError, match="max_sequence_length is 3 now, and was 1 when it was made"):
        opened_or_raise(root)
    set_params(root, {"cache_teacher": {"storage_dtype": "bfloat16"}})
    says = r"cache_teacher\.storage_dtype is bfloat16 now, and was float32 when it was made; run `rtdmd cache_teacher`"
    with pytest.raises(UserError, match=says):
        opened_or_raise(root)
    set_params(root, {})
    for file in ("text_encoder/model.safetensors", "tokenizer/tokenizer_config.json"):
        path = root / "data/world/teacher" / file
        content = path.read_bytes()
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes(content + b"\n" if path.suffix == ".json" else flipped)  # both can still be read
        try:
            with pytest.raises(UserError, match=rf"encoders\.files\.{file} is .* now, and was"):
                opened_or_raise(root)
        finally:
            path.write_bytes(content)
    assert len(opened(root, "eval").row_of) == 285


def test_embeddings_of_another_cache_are_refused(made: tuple[Path, Params], copy: Path) -> None:
    shutil.copytree(made[0] / RESULTS, copy / RESULTS, dirs_exist_ok=True)
    assert len(opened(copy, "eval").row_of) == 285
    path = copy / RESULTS / FILES[0]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"embeddings\.safetensors is not the file that .*index\.json was written with"):
        opened_or_raise(copy)
    assert sha256_file(path) != read_json(copy / RESULTS / "index.json")["files"][FILES[0]]["sha256"]
