"""A folder in which `rtdmd sample`, `import` and `publish` are refused, and their advice followed.

A command is let go on to its first image: to come there is to be past every refusal that a test provokes.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rtdmd.backbones import load_backbone, snapshot
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.cli import build_parser, main
from rtdmd.commands import import_checkpoint, sample
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json, sha256_file, sha256_tree, write_json
from rtdmd.common.torch_setup import quiet_imports
from rtdmd.config import Params, load_params
from rtdmd.publish import export
from rtdmd.publish.adapter import compose, read_adapter, write_lora
from rtdmd.publish.merge import CONFIG, MERGED
from rtdmd.stages import publish
from tests.publish.exports import publish_workspace
from tests.publish.publication import commit, run
from tests.workspace import STAGES, write_random_student, write_training_records

STUDENT = "results/train_rtdmd/generator.safetensors"
TEACHER = "data/world/teacher"
with quiet_imports():
    from diffusers import SD3Transformer2DModel


class PastError(Exception):
    """The command came to its first image."""


def copied(folder: Path, root: Path, patch: pytest.MonkeyPatch) -> Here:
    """A copy of a good folder to be refused in, on a machine without a GPU."""
    stop_at_the_first_image(patch)
    patch.setattr(torch.cuda, "is_available", lambda: False)
    return Here(Path(shutil.copytree(folder, root, symlinks=True)), folder, patch, [])


class NoText:
    """A text cache that nothing is drawn with."""

    def of(self, _: object) -> None:
        return None

    def null(self) -> None:
        return None


@dataclass
class Here:
    """The user's folder, what is typed in it, and where the good copies are."""

    root: Path
    good: Path
    patch: pytest.MonkeyPatch
    words: list[str]

    def attempt(self) -> None:
        """The command; PastError where nothing refuses it."""
        if self.words == ["publish"]:
            publish.run(self.root)
        else:
            command = sample if self.words[0] == "sample" else import_checkpoint
            command.run(build_parser().parse_args(self.words), self.root)

    def refused(self, says: str) -> str:
        """The one line of a refusal that ``says`` this."""
        with pytest.raises(UserError, match=re.escape(says)) as refused:
            self.attempt()
        assert "\n" not in str(refused.value)
        return str(refused.value)

    def params(self) -> Params:
        return load_params(self.root / "params.yaml")

    def write(self, name: str, content: str | bytes) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_bytes(content.encode() if isinstance(content, str) else content)


Change = Callable[[Here], object]
Follow = Callable[[Here, str], object]  # the second argument is the message


def stop_at_the_first_image(patch: pytest.MonkeyPatch) -> None:
    def draw(*_: object) -> None:
        raise PastError

    patch.setattr(sample, "draw", draw)
    patch.setattr(sample, "encoded", lambda *_: NoText())  # a whole teacher is loaded once more after it
    patch.setattr(export, "_draw_example", draw)


def make_good(root: Path, teacher: Path, clip: Path) -> Path:
    """Fill ``root``: a run's results, checkpoints of others, bases, published folders; data/world is Git's."""
    params = publish_workspace(root, teacher, clip, {"model": {"max_sequence_length": 77}})
    run(root, "git", "init", "-q")
    (root / ".gitignore").write_text("/*\n!/data\n!.gitignore\n")
    commit(root)
    shutil.copytree(teacher, root / "base")
    for name, changes in (
        ("deeper", {"num_layers": 3}),
        ("wider", {"attention_head_dim": 16, "caption_projection_dim": 32}),
    ):
        shutil.copytree(teacher, root / name)
        config = SD3Transformer2DModel.load_config(root / name / "transformer")
        SD3Transformer2DModel.from_config({**config, **changes}).save_pretrained(root / name / "transformer")
    for name in ("base", "deeper", "wider"):
        torch.save(checkpoint(root, params, name), root / f"{name}.pt")
    make_export(root, "export")
    make_export(root, "other", {"num_steps": 2})
    for name in (MERGED, CONFIG):
        (root / "whole" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "deeper" / name, root / "whole" / name)
    return root


def checkpoint(root: Path, params: Params, base: str) -> dict[str, torch.Tensor]:
    """The public code's state dict of a student of ``base``."""
    backbone = load_backbone(params.model.model_copy(update={"teacher": base}), vae=False, root=root)
    tensors = {}
    for name in backbone.lora_targets("attention"):
        outer, inner = backbone.transformer.get_submodule(name).weight.shape
        tensors[f"{name}.lora_A.default.weight"] = torch.ones(4, inner)
        tensors[f"{name}.lora_B.default.weight"] = torch.ones(outer, 4)
    return tensors


def make_export(root: Path, name: str, model: dict[str, Any] | None = None) -> None:
    """A published folder of both stages, with its record."""
    params = load_params(root / "params.yaml")
    section = params.model.model_dump(mode="json") | (model or {})
    (root / name).mkdir()
    adapter = compose([read_adapter(root / "results" / stage / "generator.safetensors") for stage in STAGES])
    write_lora(adapter, root / name / PUBLISHED)
    teacher = {"name": section["teacher"], "sha256": sha256_tree(root / section["teacher"])}
    write_json(root / name / "provenance.json", {"settings": {"model": section}, "teacher": teacher})
    write_json(root / name / "gate.json", {"sha256": {PUBLISHED: sha256_file(root / name / PUBLISHED)}})


def typed(*words: str) -> Follow:
    """The command with other words."""

    def change(here: Here, _: str = "") -> None:
        here.words = list(words)

    return change


def with_words(*words: str) -> Follow:
    """The command with further words."""

    def change(here: Here, _: str = "") -> None:
        here.words += words

    return change


def setting(key: str, value: Any) -> Follow:
    """A key of params.yaml."""

    def change(here: Here, _: str = "") -> None:
        path = here.root / "params.yaml"
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        section, name = key.split(".")
        tree[section][name] = value
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")

    return change


def as_told(here: Here, message: str) -> None:
    """`set KEY: VALUE` of a message, as YAML reads it."""
    found = re.search(r"set (?P<key>[a-z_]+\.[a-z_]+): (?P<value>\S+)", message)
    assert found is not None, message
    setting(found["key"], yaml.safe_load(found["value"]))(here, message)


def again(*names: str) -> Follow:
    """Files or folders copied, downloaded or made again."""

    def change(here: Here, _: str = "") -> None:
        for name in names:
            if (here.root / name).is_dir():
                shutil.rmtree(here.root / name)
            copy = shutil.copytree if (here.good / name).is_dir() else shutil.copy
            copy(here.good / name, here.root / name)

    return change


def train_again(here: Here, _: str) -> None:
    """What `rtdmd train_acdmd` and `rtdmd train_rtdmd` would leave with the params of now."""
    for seed, stage in enumerate(STAGES):
        write_random_student(here.root / "results" / stage, here.params(), seed)
        write_training_records(here.root / "results" / stage, here.params(), stage)


def literally(here: Here, message: str) -> None:
    """The first command in backticks of a message, as a shell would run it in this folder."""
    found = re.search(r"`([^`]+)`", message)
    assert found is not None, message
    program, *words = shlex.split(found[1])
    if program != "rtdmd":
        run(here.root, program, *words)
        return
    *words, arrow, target = words
    assert arrow == ">"
    with redirect_stdout(io.StringIO()) as text:
        assert main(words) == 0
    Path(target).write_text(text.getvalue(), encoding="utf-8")


def given(key: str, value: object) -> Change:
    """params.yaml with another value of a key."""
    return lambda here: setting(key, value)(here, "")


def given_entry(name: str, **entries: object) -> Change:
    """A JSON file with other entries."""
    return lambda here: with_entry(name, **entries)(here, "")


def nothing(_: Here) -> None:
    """What is typed is refused as it is."""


def both(*changes: Change) -> Change:
    def change(here: Here) -> None:
        for one in changes:
            one(here)

    return change


def removed(name: str) -> Change:
    return lambda here: (here.root / name).unlink()


def flipped(name: str) -> Change:
    """One bit in the middle of a file."""

    def change(here: Here) -> None:
        data = bytearray((here.root / name).read_bytes())
        data[len(data) // 2] ^= 1
        here.write(name, bytes(data))

    return change


def cut(name: str) -> Change:
    return lambda here: here.write(name, (here.root / name).read_bytes()[:-9])


def with_entry(name: str, **entries: object) -> Follow:
    def change(here: Here, _: str = "") -> None:
        write_json(here.root / name, read_json(here.root / name) | entries)

    return change


def on_the_hub(here: Here) -> None:
    """What a Hub id names is downloaded to base/."""
    here.patch.setattr(snapshot, "fetch_base", lambda model, **_: here.root / "base")


def both_settings(first: tuple[str, object], second: tuple[str, object]) -> Follow:
    def change(here: Here, message: str) -> None:
        setting(*first)(here, message)
        setting(*second)(here, message)

    return change


HUB = both_settings(("model.teacher", "owner/model"), ("model.revision", "0123456789abcdef" * 2 + "01234567"))


@dataclass(frozen=True)
class Case:
    words: tuple[str, ...]
    provoke: Change
    says: str
    follow: Follow


def follow_and_try_again(case: Case, here: Here) -> None:
    """The test of a case: refused in one line, and past it when the advice is taken."""
    here.words = list(case.words)
    case.provoke(here)
    message = here.refused(case.says)
    case.follow(here, message)
    with pytest.raises(PastError):
        here.attempt()
