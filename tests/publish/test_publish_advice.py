"""Every refusal of stage publish that says what to do: each is provoked and its advice taken.

What is wrong with the students and the teacher is in commands/test_sample_advice.py too: both commands read them.
Writing a student again stands for running its stage.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
import yaml

from rtdmd.common.errors import RtdmdError
from rtdmd.common.files import load_tensors, save_tensors
from rtdmd.publish import export, gate
from tests.publish.advice import (
    STUDENT,
    TEACHER,
    Case,
    Here,
    PastError,
    again,
    as_told,
    cut,
    follow_and_try_again,
    given,
    given_entry,
    literally,
    removed,
    setting,
    train_again,
)
from tests.publish.exports import (
    LORA_LINES,
    gate_in_process,
    without_lines,
    without_lora_writer,
    write_full_student,
)

PUBLISH = ("publish",)
TEXTS = f"{TEACHER}/text_encoder"


def imported(here: Here) -> None:
    tensors, header = load_tensors(here.root / STUDENT)
    save_tensors(tensors, here.root / STUDENT, header | {"imported": "true"})


def change_outs(here: Here, message: str) -> None:
    """`add it to` or `take it from the outs of publish in dvc.yaml`, as often as it is said."""
    path = here.root / "dvc.yaml"
    for turn in range(2 if "publish.format: lora" in message else 1):  # merged weights are two files
        said = message if turn == 0 else here.refused("dvc.yaml")
        what = re.search(r"(add it to|take it from) the outs of publish in dvc\.yaml: (\S+)$", said)
        assert what is not None, said
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        outs = tree["stages"]["publish"]["outs"]
        change = outs.append if what[1] == "add it to" else outs.remove
        change(what[2])
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def without_its_entry(here: Here, _: str) -> None:
    """`name the file model.safetensors and remove the entry`."""
    path = here.root / TEXTS / "config.json"
    tree = json.loads(path.read_text())
    del tree["transformers_weights"]
    path.write_text(json.dumps(tree))


CASES = {
    "no student": Case(PUBLISH, removed(STUDENT), "`snakemake train_rtdmd` makes it", train_again),
    "no figures": Case(
        PUBLISH,
        removed("results/evaluate/metrics.json"),
        "`snakemake evaluate` makes it",
        again("results/evaluate/metrics.json"),
    ),
    "a cut record": Case(
        PUBLISH,
        cut("results/train_acdmd/resolved.json"),
        "resolved.json: not JSON",
        again("results/train_acdmd/resolved.json"),
    ),
    "imported": Case(PUBLISH, imported, "`rtdmd train_rtdmd` trains a student here", train_again),
    "other steps": Case(PUBLISH, given("model.num_steps", 8), "was trained with model.num_steps: 4", as_told),
    "merged only": Case(PUBLISH, given("publish.format", "merged"), "take it from the outs of publish", change_outs),
    "adapter only": Case(PUBLISH, given("publish.format", "lora"), "take it from the outs of publish", change_outs),
    "a family without adapter files": Case(
        PUBLISH,
        lambda here: without_lora_writer(here.patch),
        "writes no LoRA files; set publish.format: merged",
        lambda here, message: (as_told(here, message), change_outs(here, here.refused("outs of publish"))),
    ),
    "an adapter too": Case(
        PUBLISH, lambda here: without_lines(here.root, LORA_LINES), "add it to the outs of publish", change_outs
    ),
    "a lost file of the world": Case(
        PUBLISH, removed(f"{TEACHER}/vae/config.json"), "`git checkout data/world` brings it back", literally
    ),
    "an adapter in the teacher": Case(
        PUBLISH,
        lambda here: here.write(f"{TEXTS}/adapter_config.json", "{}"),
        "merge it, or remove that file",
        lambda here, _: removed(f"{TEXTS}/adapter_config.json")(here),
    ),
    "weights of another name": Case(
        PUBLISH,
        given_entry(f"{TEXTS}/config.json", transformers_weights="x.safetensors"),
        "name the file model.safetensors and remove the entry",
        without_its_entry,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_advice_of_a_refusal_works(name: str, here: Here) -> None:
    follow_and_try_again(CASES[name], here)
    assert not list((here.root / "results").glob("publish/*"))


def test_a_student_of_all_weights_is_published_merged(here: Here) -> None:
    """One advice after the other: the format, then the outputs of the stage."""
    here.words = ["publish"]
    setting("adapter.mode", "full")(here)
    here.refused("publish.format: both with adapter.mode: full, which trains no adapter; allowed: merged")
    setting("publish.format", "merged")(here)
    write_full_student(here.root, here.params())
    change_outs(here, here.refused("take it from the outs of publish in dvc.yaml"))
    with pytest.raises(PastError):
        here.attempt()


def test_a_gate_that_hangs_and_a_version_that_is_no_release(here: Here) -> None:
    """Started again it is asked again, and with a released version what it answers is published."""
    here.words = ["publish"]
    here.patch.setattr(export, "_draw_example", lambda *given: given[-1].write_bytes(b"a picture"))

    def hang(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    with here.patch.context() as patch:
        patch.setattr(gate.subprocess, "run", hang)
        with pytest.raises(RtdmdError, match=r"did not end in 43200 s .* `rtdmd publish` starts it again$"):
            here.attempt()
    answers: list[dict[str, Any]] = []
    ask = gate._ask

    def asked_once(*given: Any) -> dict[str, Any]:
        if not answers:
            answers.append(ask(*given))
        return answers[0]

    here.patch.setattr(gate, "_ask", asked_once)
    with gate_in_process(here.patch):
        with here.patch.context() as patch:
            patch.setattr(gate, "version", lambda name: "9.0.dev1" if name == "peft" else "1.0")
            with pytest.raises(RtdmdError, match=r"peft 9\.0\.dev1 is no release; install one and publish again"):
                here.attempt()
        here.attempt()
    assert (here.root / "results/publish/gate.json").is_file()
