"""Every refusal of `rtdmd import` that says what to do: each is provoked and its advice taken.

Followed elsewhere: `--alpha` and `--base` of a checkpoint that tells neither (test_import.py), `--alpha` left out
(test_adapter.py). What is wrong with a teacher is in commands/test_sample_advice.py: both load it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rtdmd.common.files import save_tensors
from tests.publish.advice import (
    HUB,
    TEACHER,
    Case,
    Change,
    Here,
    PastError,
    again,
    both,
    cut,
    flipped,
    follow_and_try_again,
    given_entry,
    nothing,
    on_the_hub,
    typed,
    with_words,
)

NEW = ("--out", "new")
TOLD = ("--alpha", "4", "--base", "base", *NEW)
IMPORT = ("import", "base.pt", *TOLD)


def peft_folder(base: str) -> Change:
    """`checkpoint/`: base.pt as PEFT keeps it, which tells its base."""

    def change(here: Here) -> None:
        tensors = torch.load(here.root / "base.pt", weights_only=True)
        (here.root / "checkpoint").mkdir()
        save_tensors(tensors, here.root / "checkpoint/adapter_model.safetensors")
        names = sorted({key.partition(".lora_")[0] for key in tensors})
        told = {"r": 4, "lora_alpha": 4, "target_modules": names, "base_model_name_or_path": base}
        here.write("checkpoint/adapter_config.json", json.dumps(told))

    return change


def one_after_the_other(here: Here, _: str) -> None:
    here.words = ["import", "export", "--out", "first"]
    with pytest.raises(PastError):
        here.attempt()
    here.words = ["import", "other", "--out", "second"]


def without(name: str, part: str) -> Change:
    """A state dict without the tensors that have ``part`` in their names."""

    def change(here: Here) -> None:
        tensors = torch.load(here.root / name, weights_only=True)
        torch.save({key: value for key, value in tensors.items() if part not in key}, here.root / name)

    return change


CASES = {
    "three files": Case(
        ("import", "base.pt", "base.pt", "base.pt", *TOLD),
        lambda here: shutil.copy(here.root / "base.pt", here.root / "rl.pt") and None,
        "3 files; a checkpoint of each stage",
        typed("import", "base.pt", "rl.pt", *TOLD),
    ),
    "no file": Case(
        ("import", "base", *TOLD), nothing, "base: neither a checkpoint file nor a folder with", typed(*IMPORT)
    ),
    "not a state dict": Case(
        ("import", "x.pt", *TOLD),
        lambda here: torch.save({"step": 3}, here.root / "x.pt"),
        "generator_ema.pt of a checkpoint is one",
        typed(*IMPORT),
    ),
    "damaged": Case(IMPORT, flipped("base.pt"), "copy or download the file again", again("base.pt")),
    "cut": Case(IMPORT, cut("base.pt"), "not a complete file of torch.save", again("base.pt")),
    "code": Case(
        IMPORT,
        lambda here: torch.save({"a": Path("x")}, here.root / "base.pt"),
        "never loaded; copy or download it again",
        again("base.pt"),
    ),
    "half": Case(IMPORT, without("base.pt", "blocks.0."), "is a part of the file missing?", again("base.pt")),
    "half a pair": Case(IMPORT, without("base.pt", "0.attn.to_q.lora_B"), "is the file truncated?", again("base.pt")),
    "no alpha above 0": Case(
        ("import", "base.pt", "--alpha", "0", *IMPORT[4:]),
        nothing,
        "a number above 0 is expected",
        with_words("--alpha", "4"),
    ),
    "no base": Case(
        ("import", "base.pt", "--alpha", "4", "--base", "results", *NEW),
        nothing,
        f"neither model.teacher ({TEACHER}) nor a folder of a diffusers pipeline",
        with_words("--base", TEACHER),
    ),
    "no base, a folder": Case(
        ("import", "base.pt", "--alpha", "4", "--base", "results", *NEW),
        nothing,
        "nor a folder of a diffusers pipeline",
        with_words("--base", "base"),
    ),
    "a deeper base": Case(
        ("import", "deeper.pt", *TOLD),
        nothing,
        "is not a layer of the base model; another base",
        with_words("--base", "deeper"),
    ),
    "a wider base": Case(
        ("import", "wider.pt", *TOLD), nothing, "another base is needed", with_words("--base", "wider")
    ),
    "it tells another base": Case(
        ("import", "checkpoint", *NEW),
        peft_folder("owner/model"),
        "its base is owner/model, but model.teacher is data/world/teacher; give a copy of its base with --base FOLDER",
        with_words("--base", "base"),
    ),
    "it tells another base, set": Case(
        ("import", "checkpoint", *NEW),
        both(on_the_hub, peft_folder("owner/model")),
        "or set model.teacher: owner/model and model.revision to the commit that you trust",
        HUB,
    ),
    "two models": Case(
        ("import", "export", "other", *NEW),
        nothing,
        "record different models; import one after the",
        one_after_the_other,
    ),
    "an old folder": Case(
        (*IMPORT[:-1], "base"), nothing, "exists already; name a new folder", with_words("--out", "new")
    ),
    "a damaged base": Case(
        IMPORT,
        cut("base/transformer/diffusion_pytorch_model.safetensors"),
        "it lies outside this repository: copy or download it there again",
        again("base"),
    ),
    "a class that is no name": Case(
        IMPORT,
        given_entry("base/model_index.json", _class_name="A()"),
        "is not the name of a class or part; take the owner's own file",
        again("base/model_index.json"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_advice_of_a_refusal_works(name: str, here: Here) -> None:
    follow_and_try_again(CASES[name], here)
    assert not (here.root / "new").exists()
