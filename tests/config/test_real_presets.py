"""The five real presets: complete, free of the world's values, published settings, and unfilled pins that say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rtdmd import cli
from rtdmd.common.errors import UserError
from rtdmd.common.pins import UNPINNED, require_pin
from rtdmd.config import NOTES, PRESETS, parse_params, preset
from rtdmd.config.real import PARALLEL, REAL
from rtdmd.config.render import params_text
from rtdmd.methods import acdmd
from rtdmd.methods._card import flat
from rtdmd.methods.rtdmd import PUBLISHED


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def test_the_command_offers_every_preset() -> None:
    assert tuple(PRESETS) == cli.PRESETS and REAL.keys() == NOTES.keys()


@pytest.mark.parametrize("name", REAL)
def test_printed_presets_are_read_back_and_carry_their_notes(name: str) -> None:
    text = params_text(preset(name), f"rtdmd params {name}", NOTES[name])
    assert parse_params(text) == preset(name)
    head = " ".join(line.removeprefix("#").strip() for line in text.split("\n\nrun:")[0].splitlines())
    assert all(note in head for note in NOTES[name])
    assert "To expect" in head and "Left out" in head and "epart" not in head and "To fill in" in head
    assert max(len(line) for line in text.split("\n\nrun:")[0].splitlines()) <= 120


@pytest.mark.parametrize("name", REAL)
def test_a_preset_runs_on_the_published_gpus(name: str) -> None:
    """Stage one in one pass of each process, stage two in 16."""
    params = preset(name, PARALLEL[name])
    one, two = params.train_acdmd, params.train_rtdmd
    assert one.processes * one.micro_batch == one.batch_size
    assert two.processes * two.micro_batch * 16 == two.prompts_per_epoch * two.group_size


def test_the_published_sharding_is_in_the_notes() -> None:
    line = (
        "Published on nodes of 8 GPUs (run.gpus_per_node: 8): train_acdmd with processes: 8; sharding: base;"
        " train_rtdmd with processes: 16; sharding: hybrid; shard_group: 8."
    )
    assert line in NOTES["sd3m"]


@pytest.mark.parametrize("name", REAL)
def test_nothing_of_the_world_is_left_in_a_real_preset(name: str) -> None:
    values = [value for value in leaves(PRESETS[name]) if isinstance(value, str)]
    assert not [value for value in values if "world" in value]
    params = preset(name)
    assert params.run.device == "cuda" and params.model.dtype == "bfloat16" and params.adapter.targets == "attention"


@pytest.mark.parametrize(
    ("name", "resolution", "guidance", "length", "images", "rates"),
    [
        ("sd3m", 1024, 7.0, 128, 32 * 16, (3e-5, 3e-5, 3e-5)),
        ("sd35m", 512, 4.5, 128, 48 * 24, (3e-5, 3e-5, 3e-5)),
        ("flux1-dev", 512, 3.5, 512, 64 * 24, (3e-5, 3e-5, 1e-6)),
        ("flux2-klein-4b", 512, 4.0, 512, 64 * 24, (1e-6, 1e-6, 1e-6)),
        ("flux2-klein-9b", 512, 4.0, 512, 64 * 24, (1e-6, 1e-6, 1e-6)),
    ],
)
def test_figures_of_the_public_code(
    name: str, resolution: int, guidance: float, length: int, images: int, rates: tuple[float, float, float]
) -> None:
    """Harahan/RTDMD, configs/cold_start and configs/rtdmd."""
    params = preset(name)
    model, one, two = params.model, params.train_acdmd, params.train_rtdmd
    assert (model.resolution, model.guidance, model.max_sequence_length) == (resolution, guidance, length)
    assert (params.adapter.rank, params.adapter.alpha, model.num_steps, model.eta) == (32, 64, 4, 0.9)
    assert (one.iterations, one.batch_size, one.generator_every, one.ema_decay) == (15000, 9 * 8, 10, 0.99)
    assert (one.generator_optimizer.lr, one.fake_optimizer.lr, two.fake_optimizer.lr) == rates
    assert two.recipe == "published" and two.prompts_per_epoch * two.group_size == images
    assert two.fake_batch_size == two.last_step_batch_size == images
    assert one.recipe == "published"
    assert flat(one.model_dump(mode="json")).items() >= flat(acdmd.PUBLISHED).items()
    assert flat(two.model_dump(mode="json")).items() >= flat(PUBLISHED).items()
    consistent = {"flux1-dev": 0.0, "flux2-klein-9b": 0.0}.get(name, 0.01)
    assert (one.consistency.weight, two.consistency.weight) == (0.01, consistent)
    assert [(reward.name, reward.weight) for reward in two.rewards] == [
        ("clipscore", 1.0),
        ("hpsv2", 1.0),
        ("pickscore", 1.0),
        ("geneval", 1.0),
    ]


@pytest.mark.parametrize("name", REAL)
def test_each_stage_has_the_published_set_and_each_scorer_its_own(name: str) -> None:
    params = preset(name)
    assert params.training_sets == ("pickscore", "geneval_train")
    assert params.evaluation_sets == ("drawbench", "hpsv3", "geneval", "geneval2", "ocr")
    sets = {key: [source.name for source in sources] for key, sources in params.prepare_prompts.sets.items()}
    assert sets == {key: [key.removesuffix("_train")] for key in (*params.training_sets, *params.evaluation_sets)}
    assert (params.train_acdmd.prompt_order, params.train_rtdmd.prompt_order) == ("as_listed", "as_listed")


def test_an_unfilled_pin_is_refused_with_the_command_that_finds_it() -> None:
    assert preset("sd35m").model.revision == UNPINNED
    with pytest.raises(UserError, match=r"^model\.revision: still the placeholder; .*model_info\('a/b'\)\.sha"):
        require_pin("model.revision", "a/b", UNPINNED)
    with pytest.raises(UserError, match=r"dataset_info\('a/b'\)"):
        require_pin("prepare_prompts: revision", "a/b", UNPINNED, kind="dataset")
    require_pin("model.revision", "a/b", "1" * 40)
