"""Every preset has a plan, its sizes are the published ones, and Snakemake's resources follow from it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from rtdmd.common.errors import UserError
from rtdmd.common.files import write_json, write_jsonl
from rtdmd.common.torch_setup import DTYPES
from rtdmd.config import PRESETS, Params, preset
from rtdmd.config.load import validate
from rtdmd.config.presets import merged
from rtdmd.pipeline.dvc_yaml import params_values, read_pipeline
from rtdmd.plan import estimate, resources
from rtdmd.plan.estimate import Plan, make_plan
from rtdmd.plan.fits import fit
from rtdmd.plan.gpus import GPUS, UTILISATION
from rtdmd.plan.text import plan_text
from rtdmd.prompts.records import Prompt

SIZES = {  # parameters of transformer and text encoders
    "sd3m": (2_028_328_000, 123_650_304 + 694_659_840 + 4_762_310_656),
    "sd35m": (2_243_171_520, 123_650_304 + 694_659_840 + 4_762_310_656),
    "flux1-dev": (11_901_408_320, 123_060_480 + 4_762_310_656),
    "flux2-klein-4b": (3_875_544_576, 4_022_468_096),
    "flux2-klein-9b": (9_078_581_248, 8_190_735_360),
}
REWARDS = {
    "clipscore": 427_616_513,
    "hpsv2": 986_109_441,
    "pickscore": 986_109_441,
    "imagereward": 446_206_689,
}
SUITES = {"drawbench": 200 * 5, "hpsv3": 1024, "geneval": 553 * 4, "geneval2": 800, "ocr": 1018}
"""Images of each model in the published evaluation."""
TEACHER = "teacher (base of every role)"
TITLES = {
    "sd35m": "SD3.5-M",
    "sd3m": "SD3-M",
    "flux2-klein-4b": "FLUX.2 [klein] 4B",
    "flux2-klein-9b": "FLUX.2 [klein] 9B",
    "flux1-dev": "FLUX.1 [dev]",
}
"""The presets as the README names them."""


@cache
def plan_of(name: str) -> Plan:
    """The plan of a preset as it is, made once for all tests."""
    return make_plan(preset(name))


def check_stages(plan: Plan, params: Params) -> None:
    """What holds for every plan."""
    first, second = plan.stages["train_acdmd"], plan.stages["train_rtdmd"]
    for stage in plan.stages.values():
        memory = stage.memory
        assert memory.peak == sum(memory.parts.values()) + max(sum(phase.values()) for phase in memory.phases.values())
        watched = 0 if stage.watch is None else stage.watch.total
        assert stage.total == stage.flops * stage.updates + watched > watched
    adapter = plan.parameters["fake score (fake)"][0]
    assert first.memory.parts["optimizer"] == 2 * 2 * 4 * adapter
    held = 3 + (params.train_rtdmd.fake_adapter == "new")
    assert second.memory.parts["adapters"] == held * 4 * adapter
    seconds = first.total / (getattr(GPUS["H200"], params.model.dtype) * UTILISATION * first.processes)
    assert first.hours("H200", params.model.dtype) == pytest.approx(seconds / 3600)


def check_publishing(plan: Plan, params: Params, asked: resources.Resources) -> None:
    """Student and export are compared in float32, one transformer after the other: what stage two holds is more."""
    exact = 4 / DTYPES[params.model.dtype].itemsize * plan.stages["evaluate"].memory.parts["transformer"]
    own, gate = plan.publishing.values()
    for memory in (own, gate):
        assert memory.phases["comparison"]["transformer"] == exact
        assert max(phase.get("transformer", 0) for phase in memory.phases.values()) == exact
    assert own.phases["encoding"]["text encoders"] == plan.stages["cache_teacher"].memory.parts["text encoders"]
    assert max(own.peak, gate.peak) < plan.stages["train_rtdmd"].memory.peak
    assert asked.mem_mb * 1e6 > max(own.peak, gate.peak, own.host, gate.host)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_plan(name: str) -> None:
    params, plan = preset(name), plan_of(name)
    check_stages(plan, params)
    if name in SIZES:
        teacher = TEACHER if params.model.student is None else "teacher (base of the fake score)"
        assert (plan.parameters[teacher][0], plan.parameters["text encoders"][0]) == SIZES[name]
        assert {key: plan.parameters[f"reward {key}"][0] for key in REWARDS} == REWARDS
        suites = plan.stages["evaluate"].suites
        assert {suite.name: suite.images for suite in suites} == SUITES
        assert {suite.resolution for suite in suites} == {1024}
        assert plan.stages["evaluate"].total == pytest.approx(sum(suite.total for suite in suites))
        assert plan.stages["train_rtdmd"].memory.parts["rewards"] >= 4 * sum(
            REWARDS[key] for key in ("hpsv2", "pickscore")
        )
    text = plan_text(plan, params, "H200")
    assert all(stage in text for stage in plan.stages) and "Parameters" in text
    asked = resources.resources_of(plan, params)
    cuda = params.run.device == "cuda"
    for stage, found in plan.stages.items():
        weights = sum(found.memory.parts.get(part, 0) for part in resources.WEIGHTS)
        assert asked[stage].mem_mb * 1e6 > found.processes * (weights if cuda else found.memory.peak)
        assert asked[stage].gpu == found.processes * cuda
        longest = 60 * found.hours(resources.GPU, params.model.dtype) if cuda else 0
        assert asked[stage].runtime > longest
    check_publishing(plan, params, asked["publish"])


OFFLOAD = "offload of train_rtdmd.rewards clipscore, hpsv2, pickscore, geneval: true"
UNWATCHED = "train_rtdmd.watch.every: 0"
CARDS = [
    ("sd35m", "RTX4090", {"train_acdmd": (), "train_rtdmd": (OFFLOAD, "train_rtdmd.micro_batch: 4", UNWATCHED)}),
    ("flux2-klein-4b", "L40S", {"train_acdmd": (), "train_rtdmd": (OFFLOAD, "train_rtdmd.micro_batch: 3", UNWATCHED)}),
    ("flux2-klein-9b", "H100", {"train_acdmd": (), "train_rtdmd": (OFFLOAD, UNWATCHED)}),
    ("flux1-dev", "H100", {"train_acdmd": (), "train_rtdmd": ()}),
]
"""Both stages on one card: what is proposed beyond the preset, whose blocks are computed again."""


@pytest.mark.parametrize(("name", "gpu", "proposed"), CARDS)
def test_both_stages_fit_one_card(name: str, gpu: str, proposed: dict[str, tuple[str, ...]]) -> None:
    plan, memory = plan_of(name), GPUS[gpu].memory
    found = {stage: fit(stage, preset(name), plan.stages[stage].measure, memory) for stage in proposed}
    assert {stage: one.settings for stage, one in found.items()} == proposed
    assert all(one.peak <= memory for one in found.values())


def test_an_offloaded_scorers_weights_lie_on_the_host_but_in_its_turn() -> None:
    """Four scorers of stage two: the device has none of them at the peak but the one whose turn it is."""
    params, measure = preset("sd35m"), plan_of("sd35m").stages["train_rtdmd"].measure
    rewards = [reward.model_dump(mode="json") for reward in params.train_rtdmd.rewards]
    least = {"micro_batch": 1, "watch": {"every": 0}}
    stays, moved = (
        measure(validate(merged(params.model_dump(mode="json"), {"train_rtdmd": least | {"rewards": entries}})))
        for entries in (rewards, [reward | {"offload": True} for reward in rewards])
    )
    size = stays.parts["rewards"]
    assert moved.parts["rewards"] == 0 and size > 4 * (REWARDS["hpsv2"] + REWARDS["pickscore"])
    assert moved.host - stays.host > size  # and the images that wait
    largest = 4 * REWARDS["hpsv2"]
    assert largest < moved.phases["rewards"]["activations"] < 1.1 * largest
    assert moved.peak < stays.peak - size + largest


def test_more_processes_and_recomputed_blocks_take_less_memory() -> None:
    params = preset("smoke", {"train_acdmd": {"batch_size": 8, "micro_batch": 8}})
    one, two = (make_plan(params, processes=count).stages["train_acdmd"] for count in (1, 2))
    ours, all_of = (plan.memory.phases["fake score"]["activations"] for plan in (two, one))
    assert ours == pytest.approx(all_of / 2)
    assert two.memory.parts["optimizer"] == one.memory.parts["optimizer"]
    again, plain = make_plan(preset("smoke", {"adapter": {"gradient_checkpointing": True}})), plan_of("smoke")
    less, more = (plan.stages["train_rtdmd"].memory.phases["policy"]["activations"] for plan in (again, plain))
    assert less < more
    assert again.stages["train_acdmd"].flops > plain.stages["train_acdmd"].flops


def test_a_students_base_costs_a_second_transformer_while_training() -> None:
    """Text cache and evaluation hold one transformer, training two of the same size; passes cost what they cost."""
    name = "flux2-klein-4b"
    stacked = {"train_rtdmd": {"recipe": "custom", "stage_one_adapters": "stacked"}}  # merged ones cost one base copies
    two, one = (make_plan(preset(name, stacked | more)) for more in ({}, {"model": {"student": None}}))
    size = 2 * SIZES[name][0]
    for stage, extra in (("cache_teacher", 0), ("train_acdmd", size), ("train_rtdmd", size), ("evaluate", 0)):
        assert two.stages[stage].memory.peak - one.stages[stage].memory.peak == pytest.approx(extra, rel=1e-3, abs=1)
        assert two.stages[stage].flops == one.stages[stage].flops
    assert two.stages["train_acdmd"].memory.parts["student's transformer"] == pytest.approx(size, rel=1e-3)
    assert two.parameters["student (base of the generator)"][0] == SIZES[name][0]
    assert "the student on black-forest-labs/FLUX.2-klein-" in plan_text(two, preset(name), "H200")


def test_stage_ones_adapters_merged_are_copies_where_the_base_is_shared() -> None:
    """Copies of the adapted layers: for the generator unless its base is its own, for a new fake score always."""

    def merged(**changes: str | None) -> float:
        student = changes.pop("student", None)
        own = None if student is None else {"model": student, "revision": None}
        tree = {"train_rtdmd": {"recipe": "custom"} | changes, "model": {"student": own}}
        return make_plan(preset("smoke", tree)).stages["train_rtdmd"].memory.parts.get("merged layers", 0.0)

    one = merged(stage_one_adapters="merged", fake_adapter="continued")
    assert one > 0 == merged(stage_one_adapters="stacked", fake_adapter="new")
    assert merged(stage_one_adapters="merged", fake_adapter="new") == 2 * one
    assert merged(stage_one_adapters="merged", fake_adapter="continued", student="./x") == 0
    assert merged(stage_one_adapters="merged", fake_adapter="new", student="./x") == one


def test_both_bases_are_sharded() -> None:
    changes = {"processes": 8, "sharding": "base"}
    plan = make_plan(preset("flux2-klein-4b", {"train_acdmd": changes, "train_rtdmd": changes}))
    for stage in ("train_acdmd", "train_rtdmd"):
        parts = plan.stages[stage].memory.parts
        assert parts["transformer"] == parts["student's transformer"] < 0.2 * 2 * SIZES["flux2-klein-4b"][0]


def test_full_mode_keeps_float32_copies() -> None:
    plan = make_plan(preset("smoke", {"adapter": {"mode": "full"}, "publish": {"format": "merged"}}))
    base, parts = plan.parameters[TEACHER][0], plan.stages["train_rtdmd"].memory.parts
    assert plan.parameters["fake score (fake)"][0] == base
    assert (parts["adapters"], parts["optimizer"]) == (3 * 4 * base, 2 * 2 * 4 * base)


def test_prompts_that_other_settings_made_are_not_counted(tmp_path: Path) -> None:
    """A demo's prompts say nothing of a preset that has others; its own are counted."""
    folder = tmp_path / "results/prepare_prompts"
    folder.mkdir(parents=True)
    for split, texts in (("train", ("a", "b", "a")), ("eval", ("c", "d", "e"))):  # "a" is in two training sets
        rows = [Prompt(i, text, set=f"{split}{i}").row() for i, text in enumerate(texts)]
        write_jsonl(folder / f"{split}.jsonl", rows)
    world = preset("world")
    (tmp_path / "dvc.yaml").symlink_to(Path("dvc.yaml").absolute())
    keys = read_pipeline(tmp_path)["prepare_prompts"].params
    used = params_values(world.model_dump(mode="json"), keys)
    write_json(folder / "resolved.json", {"params": used})
    unknown = (estimate.UNKNOWN_PROMPTS, None)
    assert estimate.prompts_of(world, tmp_path) == (5, {"eval0": 1, "eval1": 1, "eval2": 1})
    assert estimate.prompts_of(preset("sd35m"), tmp_path) == unknown
    assert estimate.prompts_of(world, tmp_path / "nowhere") == unknown
    write_json(folder / "resolved.json", {"of": "something else"})
    assert estimate.prompts_of(world, tmp_path) == unknown


@pytest.mark.parametrize("name", TITLES)
def test_hours_and_memory_in_the_readme_are_the_plans(name: str) -> None:
    """Of the published number of GPUs; every plan here is that of one, which takes as long as all of them together."""
    cells = r" \| (\d+) \| (\d+) h \| (\d+) h \| (\d+) h \| (\d+) GiB \|"
    row = re.search(re.escape(f"| {TITLES[name]}") + cells, Path("README.md").read_text(encoding="utf-8"))
    assert row is not None
    gpus, first, second, evaluation, memory = (int(cell) for cell in row.groups())
    stages = plan_of(name).stages
    hours = {stage: stages[stage].hours("H200", "bfloat16") for stage in stages}
    assert (first, second) == (round(hours["train_acdmd"] / gpus), round(hours["train_rtdmd"] / gpus))
    assert evaluation == round(hours["evaluate"])
    assert memory == round(stages["train_rtdmd"].memory.peak / 2**30)


def test_a_hub_id_without_record_says_what_to_do() -> None:
    unknown = {"model": {"teacher": "somebody/some-model"}}
    with pytest.raises(UserError, match="shapes of somebody/some-model are not known here; run `rtdmd cache_teacher`"):
        make_plan(preset("sd35m", unknown))


def test_needs_are_kept_and_made_again_for_other_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(Path("data").absolute())
    params = preset("smoke")
    made = resources.plan_resources(params, tmp_path)
    plan = make_plan(params, tmp_path)
    assert made == {name: asdict(need) for name, need in resources.resources_of(plan, params).items()}

    def refuse(*_: object) -> Plan:
        raise AssertionError("the plan was made again")

    monkeypatch.setattr(estimate, "make_plan", refuse)
    assert resources.StageResources(params, tmp_path).of("train_acdmd")["mem_mb"](None) == made["train_acdmd"]["mem_mb"]
    assert resources.plan_resources(preset("smoke", {"report": {"title": "another"}}), tmp_path) == made
    with pytest.raises(AssertionError, match="made again"):
        resources.plan_resources(preset("smoke", {"train_acdmd": {"batch_size": 8}}), tmp_path)


def test_reading_the_rules_imports_no_torch() -> None:
    code = "import sys, rtdmd.plan.resources; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
