"""`rtdmd rehearse --real-size` on published configurations made small: figures beside the plan's, and refusals."""

from __future__ import annotations

import csv
import gc
import math
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.cli import main
from rtdmd.common.errors import UserError
from rtdmd.config import preset
from rtdmd.plan.cost_counter import count_cost
from rtdmd.plan.published import TEACHERS
from rtdmd.rehearse import MEASUREMENTS, STAGES, memory, real_case, real_size
from rtdmd.rehearse.real_case import Case, known_gpu
from rtdmd.rehearse.real_models import shallower
from rtdmd.rehearse.real_size import Options, Row, Sheet, TimeUp, rehearse
from rtdmd.rehearse.shrink import shrunk
from rtdmd.rehearse.updates import peak_epochs, round_of, typical_rounds
from rtdmd.rewards.registry import REWARDS

CPU = torch.device("cpu")
TEACHER = {
    "sd35m": "stabilityai/stable-diffusion-3.5-medium",
    "flux2-klein-4b": "black-forest-labs/FLUX.2-klein-base-4B",
}


class Counted:
    """In place of `Peak`: the bytes of every tensor that is alive, as `tests/plan` counts them."""

    def __init__(self, device: torch.device, before: int) -> None:
        self.base = memory.held(device) - before
        self.count_cost = count_cost(memory.every_tensor())
        self.counter = self.count_cost.__enter__()

    def bytes(self) -> int:
        self.count_cost.__exit__(None, None, None)
        return self.base + self.counter.peak


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """The published teachers' configurations, made small, and a kilobyte for a scorer that is not run."""
    with pytest.MonkeyPatch.context() as patch:
        for name in TEACHER.values():
            whole = TEACHERS[name]
            tokens = {part: 100 for part in whole if part.startswith("text")}
            patch.setitem(TEACHERS, name, shrunk(whole, tokens))
        registered = REWARDS["geneval"]
        patch.setitem(REWARDS, "geneval", replace(registered, cost=replace(registered.cost, parameters=250)))
        yield


@cache
def case_of(name: str, clip: Path) -> Case:
    """A preset on its small teacher, with a tiny CLIP and a scorer that is not run; every update has the generator's.
    Its passes are counted once for all tests."""
    geneval = next(one for one in preset("sd35m").train_rtdmd.rewards if one.name == "geneval")
    rewards = [{"name": "clipscore", "model": str(clip)}, geneval.model_dump(mode="json")]
    changes: dict[str, Any] = {
        "run": {"threads": 1, "device": "cpu"},
        "model": {"resolution": 64, "max_sequence_length": 128},
        "adapter": {"rank": 4, "alpha": 8},
        "train_acdmd": {"recipe": "custom", "generator_every": 1},
        "train_rtdmd": {"rewards": rewards},
        "evaluate": {
            "rewards": [rewards[0]],
            "suites": [{"name": "drawbench", "prompts": "drawbench", "images_per_prompt": 1, "resolution": 64}],
        },
    }
    return Case.of(preset(name, changes), Path("/"), 8)


def options(tmp_path: Path, **given: Any) -> Options:
    return Options("cpu", out=tmp_path, **({"measure": ("updates",)} | given))


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / real_size.FILE).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", TEACHER)
def test_both_stages_hold_what_the_plan_says(
    name: str, tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(real_case, "Peak", Counted)
    case = case_of(name, tiny_clip)
    rows = rehearse({name: case}, options(tmp_path))
    assert [(row.stage, row.images, row.updates) for row in rows] == [(stage, 8, 2) for stage in STAGES]
    for row in rows:
        assert row.peak == pytest.approx(row.planned_peak, rel=0.05)
        assert row.planned_peak == round(case.memory(row.stage).peak)
        assert row.planned_seconds == pytest.approx(case.flops(row.stage) / 10e9)
        assert row.samples == pytest.approx(8 / row.seconds)
    kept = read(tmp_path)
    assert [one["peak"] for one in kept] == [str(row.peak) for row in rows]
    said = capsys.readouterr().out
    assert f"{name} train_rtdmd bfloat16: " in said and "planned / measured" in said
    whole = [line.split()[1:3] for line in said.split("whole stage")[1].splitlines()[1:] if line.startswith(name)]
    batches = {"train_acdmd": ("1", "2", "4", "8"), "train_rtdmd": ("1", "2", "4", "8", "16", "32")}
    assert whole == [[stage, count] for stage, counts in batches.items() for count in counts]


def test_losses_of_two_precisions_are_close_and_not_equal(tmp_path: Path, tiny_clip: Path) -> None:
    rows = rehearse({"small": case_of("sd35m", tiny_clip)}, options(tmp_path, measure=("losses",)))
    for row, losses in zip(rows, (("fake_ambient", "matching"), ("fake_ambient", "matching", "backprop")), strict=True):
        apart = dict(part.split() for part in row.note.removeprefix("apart by ").split(", "))
        assert all(0 < float(apart[name]) < 0.2 for name in losses), row.note


def test_the_order_is_that_of_importance_and_compile_is_turned_over(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every measurement is on disk before the next one begins."""
    seen: list[tuple[int, str, bool]] = []

    def updates(case: Case, stage: str, count: int, device: torch.device) -> Iterator[tuple[float, int]]:
        seen.append((len(read(tmp_path)) if seen else 0, stage, getattr(case.params, stage).compile))
        yield from [(2.0, 30), (1.0, 10), (3.0, 20)]

    monkeypatch.setattr(real_size, "measured_updates", updates)
    monkeypatch.setattr(real_size, "check_all", lambda setting: iter(()))
    monkeypatch.setattr(real_size, "losses_of", lambda case, stage, dtype, device: {"gap": len(dtype)})
    case = case_of("sd35m", tiny_clip)
    rows = rehearse({"a": case, "b": case}, options(tmp_path, measure=MEASUREMENTS))
    assert [(row.model, row.stage) for row in rows] == [
        *((name, stage) for name in "ab" for stage in STAGES),
        ("equations", ""),
        *((name, stage) for name in "ab" for stage in STAGES),
        *((name, stage) for name in "ab" for stage in STAGES),
    ]
    assert seen == [(number, STAGES[i % 2], i > 3) for i, number in enumerate((0, 1, 2, 3, 9, 10, 11, 12))]
    timed = {(row.first_seconds, row.seconds, row.timed, row.peak) for row in rows if row.updates}
    assert timed == {(2.0, 2.0, "", 20)}
    assert rows[4].note.startswith("0 of 0 statements hold")
    assert rows[5].note == f"apart by gap {abs(8 - 7) / 7:.1e}"


def test_when_the_minutes_are_over_what_is_known_is_kept(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The warm-up's figures are marked as such, in the file and in both tables."""

    def updates(*_: object) -> Iterator[tuple[float, int]]:
        yield 2.0, 30
        raise TimeUp

    monkeypatch.setattr(real_size, "measured_updates", updates)
    case = case_of("sd35m", tiny_clip)
    rows = rehearse({"a": case}, options(tmp_path, minutes=60.0))
    kept = read(tmp_path)
    assert len(rows) == len(kept) == 1
    note = "stopped: the minutes are over; raise --minutes"
    assert [kept[0][key] for key in ("seconds", "timed", "note")] == ["2.0", "warm-up", note]
    row, tables = capsys.readouterr().out.split(note)
    assert "2 s an update (warm-up) (planned " in row
    measured, whole = tables.split("whole stage")
    assert "  2 (warm-up)" in measured and "  4 (warm-up)" in measured  # seconds, and 8 images in them
    assert all(line.count("(warm-up)") == 2 for line in whole.splitlines() if line.startswith("a "))
    with pytest.raises(
        UserError, match=r"nothing was measured; a train_acdmd .*needs about \d+ s of the \d s that are"
    ):
        rehearse({"a": case}, options(tmp_path, minutes=0.1))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_what_turns_out_not_to_fit_ends_that_measurement_alone(
    error: RuntimeError,
    tmp_path: Path,
    tiny_clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was free before is told; with nothing measured at all it is an error, and so is any other RuntimeError."""

    def fails(*_: object) -> Any:
        raise error

    def updates(*_: object) -> Iterator[tuple[float, int]]:
        yield 2.0, 30
        monkeypatch.setattr(real_size, "available", lambda device: 0)
        raise error

    monkeypatch.setattr(real_size, "available", lambda device: 2**40)
    for name, instead in (("measured_updates", updates), ("check_all", fails), ("losses_of", fails)):
        monkeypatch.setattr(real_size, name, instead)
    case = case_of("sd35m", tiny_clip)
    given = options(tmp_path, stages=("train_acdmd",), measure=("updates", "verify", "losses"))
    rows = rehearse({"a": case}, given)
    assert [(row.seconds, row.timed, row.note) for row in rows] == [
        (2.0, "warm-up", "did not fit: 1024.0 GiB were free; lower --images or --blocks"),
        (None, "", "did not fit: 0.0 MiB were free"),
        (None, "", rows[2].note),
    ]
    assert rows[2].note.startswith("left out: needs ") and "planned / measured" in capsys.readouterr().out
    with pytest.raises(UserError, match="nothing was measured; equations bfloat16 on cpu: did not fit"):
        rehearse({"a": case}, replace(given, measure=("verify", "losses")))
    monkeypatch.setattr(real_size, "available", lambda device: 2**40)
    with pytest.raises(
        UserError, match=r"nothing was measured; a train_acdmd .*: did not fit: 1024.0 GiB were free; low"
    ):
        rehearse({"a": case}, replace(given, measure=("losses",)))
    error = RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        rehearse({"a": case}, replace(given, measure=("losses",)))


def test_an_end_of_the_time_that_a_finaliser_swallowed_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_size, "AGAIN", 0.05)
    began = time.monotonic()
    with pytest.raises(TimeUp), real_size.time_box(0.05):
        try:
            time.sleep(20)
        except TimeUp:
            swallowed = time.monotonic() - began
        time.sleep(20)
    assert swallowed < time.monotonic() - began < 10


def test_what_does_not_fit_the_memory_is_not_begun(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("sd35m", tiny_clip)
    needed = {stage: real_size.ROOM * case.memory(stage).peak for stage in STAGES}
    assert needed["train_acdmd"] < needed["train_rtdmd"]
    monkeypatch.setattr(real_size, "available", lambda device: int(needed["train_rtdmd"]) - 1)
    monkeypatch.setattr(real_size, "measured_updates", lambda *_: iter([(1.0, 10)]))
    rows = rehearse({"a": case}, options(tmp_path))
    assert [row.updates for row in rows] == [1, 0]
    assert rows[1].note.startswith("left out: needs ") and rows[1].note.endswith("lower --images (now 8) or --blocks")
    monkeypatch.setattr(real_size, "available", lambda device: 0)
    with pytest.raises(UserError, match=r"--real-size: nothing was measured; a train_acdmd bfloat16: left out: needs"):
        rehearse({"a": case}, options(tmp_path))


def test_without_a_gpu_the_cpu_is_offered_and_the_offer_works(
    tmp_path: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    clip = f"{{name: clipscore, model: {tiny_clip}}}"
    command = ["rehearse", "--real-size", "--preset", "sd35m", "--stage", "train_rtdmd", "--out", str(tmp_path)]
    for setting in ("run.threads=1", "model.resolution=64", f"train_rtdmd.rewards=[{clip}]"):
        command += ["--set", setting]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "rtdmd: --real-size: torch sees no CUDA device here. With `--device cpu --images 1 --measure updates` the CPU"
        " takes about "
    )
    monkeypatch.setattr(real_size, "measured_updates", lambda *_: iter([(1.0, 10)]))
    assert main([*command, *said.split("`")[1].split()]) == 0
    assert [(row["images"], row["note"]) for row in read(tmp_path)] == [("2", "")]

    monkeypatch.setattr(real_size, "available", lambda device: 0)  # fewer blocks do not help: it says so
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "`--device cpu --images 1 --blocks 1 --measure updates`" in said
    assert said.endswith("0.0 GiB that are free, which do not fit: close other programs\n")


@pytest.mark.parametrize("option", [["--updates", "0"], ["--images", "0"], ["--blocks", "0"], ["--minutes", "0"]])
def test_options_out_of_range(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rehearse", "--real-size", "--preset", "smoke", *option]) == 2
    assert capsys.readouterr().err.startswith(f"rtdmd: {option[0]}: 0; allowed: ")


def test_fewer_blocks_at_the_published_width() -> None:
    dual = {"num_layers": 24, "dual_attention_layers": tuple(range(13)), "attention_head_dim": 64}
    for own, blocks, kept in (
        (dual, 6, {"num_layers": 6, "dual_attention_layers": tuple(range(6))}),
        ({"num_layers": 5, "num_single_layers": 20}, 2, {"num_layers": 2, "num_single_layers": 8}),
        ({"num_layers": 5, "num_single_layers": 20}, 9, {}),
    ):
        cut = shallower({"transformer": own, "vae": {"latent_channels": 4}}, blocks)
        assert cut == {"transformer": own | kept, "vae": {"latent_channels": 4}}


def test_a_case_says_that_it_is_cut(tiny_clip: Path) -> None:
    whole = case_of("sd35m", tiny_clip)
    assert (whole.shallower(1).blocks, whole.shallower(1).cut) == (1, f", 1 of {whole.blocks} blocks")
    assert whole.shallower(1).memory("train_acdmd").peak < whole.memory("train_acdmd").peak
    assert whole.shallower(99) is whole


def test_a_peak_is_what_was_held_at_once() -> None:
    """64 MiB that come and go beside 32 MiB that stay; those of others count nothing."""
    others = torch.ones(2**23)
    before = memory.held(CPU)
    with memory.freed_at_once():
        stays = torch.ones(2**23)
        peak = memory.Peak(CPU, before)
        del (passing := {"tensor": torch.ones(2**24)})["tensor"]
        assert peak.bytes() == pytest.approx(stays.nbytes + 4 * 2**24, rel=0.05)
    assert not passing and len(others) == 2**23


def test_models_that_were_measured_are_gone_before_the_free_memory_is_asked_for() -> None:
    """A trainer and its update hold each other: without a search for such rings the next one would seem not to fit."""
    ring = torch.nn.Linear(2, 2)
    ring.own = [ring]
    gone = weakref.ref(ring)
    gc.disable()
    try:
        del ring
        there = gone() is not None
        free = memory.available(CPU)
        still_there = gone() is not None
    finally:
        gc.enable()
    assert (there, still_there) == (True, False) and free > 0


@pytest.mark.parametrize(
    ("line", "top", "most", "now", "dropped", "unlimited"),
    [
        ("0::/", ".", "memory.max", "memory.current", "inactive_file", "max"),
        (
            "4:cpu,memory:/",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
            2**63 - 4096,
        ),
    ],
    ids=["v2", "v1"],
)
def test_memory_is_what_the_control_groups_leave(
    line: str, top: str, most: str, now: str, dropped: str, unlimited: str | int, tmp_path: Path
) -> None:
    """The nearest limit holds, of the own group or of one above; a group that is not mounted here has none."""
    own, folder = tmp_path / "own", tmp_path / top
    own.write_text(f"9:name=systemd:/x\n{line}pod/job\n")
    assert memory.below_limit(tmp_path, own) == memory.below_limit(tmp_path, tmp_path / "none") == math.inf
    for group, limit, used, files in (("pod", 1000, 700, 50), ("pod/job", unlimited, 300, 0)):
        (folder / group).mkdir(parents=True)
        (folder / group / most).write_text(f"{limit}\n")
        (folder / group / now).write_text(f"{used}\n")
        (folder / group / "memory.stat").write_text(f"anon 1\n{dropped} {files}\n")
    assert memory.below_limit(tmp_path, own) == 350
    (folder / "pod/job" / most).write_text("400\n")
    assert memory.below_limit(tmp_path, own) == 100
    (folder / "pod/job" / now).write_text("500\n")
    assert memory.below_limit(tmp_path, own) == 0


def test_rounds_are_typical_and_epochs_hold_the_most() -> None:
    params = preset("sd35m", {"train_acdmd": {"recipe": "custom", "generator_every": 2}})
    rounds = typical_rounds(params, 3)
    assert len(set(rounds)) == 3 and list(round_of(params, 5)) == [10, 11]
    random_step = preset("world")
    assert random_step.train_rtdmd.matching_path == "random_step"
    assert len(peak_epochs(random_step, 3)) == 3 and peak_epochs(params, 3) == [0, 1, 2]


def test_drivers_names_of_gpus() -> None:
    names = {"NVIDIA H200": "H200", "NVIDIA A100-SXM4-80GB": "A100", "NVIDIA GeForce RTX 4090": "RTX4090", "x": None}
    assert {name: known_gpu(name) for name in names} == names


def test_a_row_says_what_is_known() -> None:
    row = Row("sd35m", "train_acdmd", "bfloat16", images=9, updates=2, first_seconds=4.0, seconds=2.0)
    row.samples, row.planned_seconds, row.peak, row.planned_peak = 4.5, 1.5, 2**30, 2**30
    assert row.line() == (
        "sd35m train_acdmd bfloat16: 2 s an update (planned 1.5), 4.5 images/s; peak 1.0 GiB, planned 1.0 GiB (1.00"
        " of it)"
    )
    assert Sheet(Path("x")).rows == []
