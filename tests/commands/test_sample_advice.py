"""Every refusal of `rtdmd sample` that says what to do: each is provoked and its advice taken.

Followed elsewhere: `--base FOLDER` of a published folder (test_sample.py), a shorter publish.prompt
(config/test_text_window.py). Writing a student again stands for running its stage.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.common.files import save_tensors
from tests.publish.advice import (
    HUB,
    STUDENT,
    TEACHER,
    Case,
    Here,
    again,
    as_told,
    both,
    cut,
    flipped,
    follow_and_try_again,
    given,
    given_entry,
    literally,
    nothing,
    on_the_hub,
    removed,
    setting,
    train_again,
    typed,
    with_entry,
    with_words,
)

SAMPLE = ("sample", "a photo of a red circle", "--from")
STUDENTS = (*SAMPLE, "train_rtdmd")
BASE = (*SAMPLE, "teacher")


def not_finite(here: Here) -> None:
    tensors = {key: torch.full_like(value, torch.nan) for key, value in load_file(here.root / STUDENT).items()}
    save_tensors(tensors, here.root / STUDENT)


def without_a_weight(here: Here) -> None:
    path = here.root / TEACHER / "transformer/diffusion_pytorch_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "proj_out" not in key}, path)


def differs(key: str, value: object) -> Case:
    return Case(STUDENTS, given(key, value), f"was trained with {key}: ", as_told)


CASES = {
    "no image": Case(
        (*SAMPLE, "teacher", "--images", "0"), nothing, "--images 0: at least 1", with_words("--images", "1")
    ),
    "a base of a run's model": Case(
        (*SAMPLE, "teacher", "--base", "base"),
        nothing,
        "only for a published folder",
        typed(*SAMPLE, "export", "--base", "base"),
    ),
    "no model": Case((*SAMPLE, "here"), nothing, "neither one of teacher, teach", typed(*SAMPLE, "teacher_few_step")),
    "no folder": Case((*SAMPLE, "results"), nothing, f"nor a folder with {PUBLISHED}", typed(*SAMPLE, "export")),
    "no params": Case(BASE, removed("params.yaml"), "`rtdmd params world > ", literally),
    "no student": Case(
        STUDENTS,
        removed("results/train_acdmd/generator.safetensors"),
        "`rtdmd train_acdmd` makes it",
        train_again,
    ),
    "rank": differs("adapter.rank", 2),
    "alpha": differs("adapter.alpha", 32),
    "teacher": differs("model.teacher", "./base"),
    "steps": differs("model.num_steps", 8),
    "steps, trained again": Case(
        STUDENTS, given("model.num_steps", 8), "or run the stage that makes it again", train_again
    ),
    "other layers": Case(
        STUDENTS,
        given("adapter.targets", "attention"),
        "does not fit the adapter section of params.yaml",
        train_again,
    ),
    "not finite": Case(STUDENTS, not_finite, "not finite; run the stage that makes it again", train_again),
    "a cut student": Case(STUDENTS, cut(STUDENT), "not a complete safetensors file", train_again),
    "not what passed": Case(
        (*SAMPLE, "export"), flipped(f"export/{PUBLISHED}"), "make or download the folder again", again("export")
    ),
    "a cut record": Case((*SAMPLE, "export"), cut("export/provenance.json"), "not JSON", again("export")),
    "merged on another": Case(
        (*SAMPLE, "whole"),
        nothing,
        "model.teacher must be what it was trained on",
        setting("model.teacher", "./deeper"),
    ),
    "another resolution": Case(
        BASE,
        given("model.resolution", 40),
        "model.resolution: 40 is not a multiple of 12",
        setting("model.resolution", 48),
    ),
    "no GPU": Case(BASE, given("run.device", "cuda"), "set run.device: cpu in", as_told),
    "no teacher": Case(
        BASE,
        given("model.teacher", "./gone"),
        "correct the path",
        setting("model.teacher", "./base"),
    ),
    "no teacher here": Case(
        BASE,
        both(on_the_hub, given("model.teacher", "./gone")),
        "or name a Hub id and its revision",
        HUB,
    ),
    "a lost file of the world": Case(
        BASE,
        removed(f"{TEACHER}/transformer/diffusion_pytorch_model.safetensors"),
        "`git checkout data/world` brings it back",
        literally,
    ),
    "a damaged file of the world": Case(
        BASE, cut(f"{TEACHER}/vae/config.json"), "`git checkout data/world` brings it back", literally
    ),
    "a lost weight of the world": Case(BASE, without_a_weight, "missing: proj_out", literally),
    "a foreign class": Case(
        BASE,
        given_entry(f"{TEACHER}/model_index.json", vae=["diffusers", "Pipe"]),
        "StableDiffusion3Pipeline allows AutoencoderKL",
        with_entry(f"{TEACHER}/model_index.json", vae=["diffusers", "AutoencoderKL"]),
    ),
    "a foreign library": Case(
        BASE,
        given_entry(f"{TEACHER}/model_index.json", vae=["os", "system"]),
        "allowed: a class of diffusers or of transformers",
        with_entry(f"{TEACHER}/model_index.json", vae=["diffusers", "AutoencoderKL"]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_advice_of_a_refusal_works(name: str, here: Here) -> None:
    follow_and_try_again(CASES[name], here)
