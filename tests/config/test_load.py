"""What params.yaml may say, and the one line it gets when it says something else."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.utils import validate_repo_id
from pydantic import ValidationError

from rtdmd.common.errors import UserError
from rtdmd.common.hub_names import is_hub_name
from rtdmd.config import PRESETS, load_params, parse_params, preset
from rtdmd.config.load import validate
from rtdmd.config.presets import RECIPES, merged


def message(changes: dict) -> str:
    """The error of preset world with `changes` over it."""
    with pytest.raises(UserError) as caught:
        validate(merged(PRESETS["world"], changes))
    text = str(caught.value)
    assert "\n" not in text
    return text


def suites(*entries: dict[str, Any]) -> dict[str, Any]:
    """Changes with these suites of the held-out captions."""
    return {"evaluate": {"suites": [{"name": "a", "prompts": "heldout"} | entry for entry in entries]}}


@pytest.mark.parametrize(
    "text, value", [("1e-4", 1e-4), ("3e-05", 3e-5), ("1", 1.0), ("2.5E-3", 2.5e-3), ('"1e-4"', 1e-4)]
)
def test_every_spelling_of_a_number_is_the_number(text: str, value: float) -> None:
    tree = merged(PRESETS["world"], {"train_acdmd": {"fake_optimizer": {"lr": yaml.safe_load(text)}}})
    assert validate(tree).train_acdmd.fake_optimizer.lr == value


def test_unknown_key_names_its_neighbour_and_the_allowed() -> None:
    text = message({"train_acdmd": {"generator_optimiser": 0.5}})
    told = "params.yaml: train_acdmd.generator_optimiser: unknown key (value 0.5); allowed: recipe, iterations,"
    assert text.startswith(told)
    assert text.endswith("did you mean generator_optimizer?")


def test_a_key_that_is_no_word_is_shown() -> None:
    assert message({"run": {"": 1}}).startswith("params.yaml: run.'': unknown key (value 1); allowed: seed,")


def test_key_of_another_section_is_pointed_there() -> None:
    assert message({"adapter": {"group_size": 4}}).endswith("did you mean train_rtdmd.group_size?")


def test_misspelt_section_comes_before_the_missing_one() -> None:
    tree = dict(PRESETS["world"])
    tree["adaptor"] = tree.pop("adapter")
    with pytest.raises(UserError, match=r"^params.yaml: adaptor: unknown key .* did you mean adapter\? \(1 more after"):
        validate(tree)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"run": {"seed": True}}, "run.seed: True is not allowed; allowed: a valid integer"),
        ({"run": {"seed": 1.0}}, "run.seed: 1.0 is not allowed; allowed: a valid integer"),
        ({"run": {"seed": "7"}}, "run.seed: '7' is not allowed; allowed: a valid integer"),
        ({"model": {"eta": True}}, "model.eta: True is not allowed; allowed: a number"),
        ({"model": {"eta": "high"}}, "model.eta: 'high' is not allowed; allowed: a number"),
        ({"model": {"eta": 1.5}}, "model.eta: 1.5 is not allowed; allowed: less than or equal to 1"),
        ({"model": {"eta": float("nan")}}, "model.eta: nan is not allowed; allowed: a finite number"),
        (
            {"model": {"family": "sd33"}},
            "model.family: 'sd33' is not allowed; allowed: flux1, flux2, sd3; did you mean sd3?",
        ),
        ({"train_rtdmd": {"share_noise": 1}}, "train_rtdmd.share_noise: 1 is not allowed; allowed: a valid boolean"),
        (
            {"train_acdmd": {"fake_optimizer": {"betas": [0.9]}}},
            "train_acdmd.fake_optimizer.betas[1] is missing",
        ),
        (
            {"train_rtdmd": {"generator_optimizer": {"betas": [0.9, 1.0]}}},
            "train_rtdmd.generator_optimizer.betas: [0.9, 1.0] is not allowed; allowed: two numbers from 0 to below 1",
        ),
        (
            {"train_rtdmd": {"fake_optimizer": {"eps": 0}}},
            "train_rtdmd.fake_optimizer.eps: 0 is not allowed; allowed: greater than 0",
        ),
        ({"model": {"revision": "abc"}}, "model.revision: 'abc' with the folder 'data/world/teacher'; allowed: null"),
        (
            {"model": {"teacher": "a/b"}},
            "model.revision: None with the Hub id 'a/b'; allowed: the 40 hex digits of a commit",
        ),
        (
            {"train_rtdmd": {"candidate_steps": [1, 3]}},
            "train_rtdmd.candidate_steps: [1, 3]; allowed: 0 to model.num_steps - 2 = 2",
        ),
        (
            {"train_rtdmd": {"candidate_steps": [1, 2], "trained_steps": 4}},
            "train_rtdmd.trained_steps: 4; allowed: 1 to 2, the candidate_steps",
        ),
        ({"train_rtdmd": {"candidate_steps": [2, 1]}}, "train_rtdmd.candidate_steps: [2, 1]; allowed: step numbers"),
        ({"model": {"eta": 0}}, "model.eta: 0 with train_rtdmd.weights.policy above 0"),
        (
            {"train_acdmd": {"sharding": "base"}},
            "train_acdmd.sharding: base with train_acdmd.processes: 1; allowed: none, or several processes",
        ),
        (
            {"train_acdmd": {"sharding": "base", "processes": 2, "compile": True}},
            "train_acdmd.sharding: base with train_acdmd.compile: true; allowed: none, or compile: false",
        ),
        (
            {"train_rtdmd": {"sharding": "base", "processes": 2}, "adapter": {"mode": "full"}},
            "train_rtdmd.sharding: base with adapter.mode: full; allowed: none",
        ),
        (
            {"train_rtdmd": {"sharding": "hybrid", "processes": 4}},
            "train_rtdmd.shard_group: null with train_rtdmd.sharding: hybrid; allowed: the number of processes that",
        ),
        (
            {"train_acdmd": {"sharding": "base", "processes": 4, "shard_group": 2}},
            "train_acdmd.shard_group: 2 with train_acdmd.sharding: base; allowed: null",
        ),
        (
            {"train_rtdmd": {"sharding": "hybrid", "processes": 4, "shard_group": 3}},
            "train_rtdmd.shard_group: 3 with train_rtdmd.processes: 4; allowed: a number that divides the processes",
        ),
        ({"train_rtdmd": {"recipe": "published"}}, "with recipe: published; allowed:"),
        (
            {"train_rtdmd": {"rewards": [{"name": "world_verifier", "soft_weight": 0.7}]}},
            "train_rtdmd.weights.backprop: 0.25 without a differentiable reward",
        ),
        (
            {"train_rtdmd": {"matching_path": "whole_chain", "weights": {"matching": 0.0}}},
            "train_rtdmd.matching_path: whole_chain with weights.matching: 0; allowed: last_step",
        ),
        (
            {"train_rtdmd": {"matching_path": "reward", "density": "published"}},
            "train_rtdmd.matching_path: reward with density: published; allowed: density: gaussian",
        ),
        (
            {"train_rtdmd": {"rewards": [{"name": "clipscore", "model": "a", "policy": False}]}},
            "train_rtdmd.rewards: all with policy: false; allowed: at least one with policy: true",
        ),
        (
            {"train_rtdmd": {"rewards": [{"name": "ocr", "policy": False}]}},
            "policy: False for ocr; allowed: true (ocr carries no gradient)",
        ),
        ({"train_rtdmd": {"matching_path": "chain"}}, "allowed: last_step, random_step, whole_chain, reward"),
        (
            {"evaluate": {"rewards": [{"name": "clipscore"}]}},
            "evaluate.rewards[0].model is missing; allowed: a CLIPModel folder or Hub id",
        ),
        (
            {"evaluate": {"rewards": [{"name": "clipscore", "model": "a"}, {"name": "clipscore", "model": "b"}]}},
            "'clipscore' occurs 2 times; allowed: each reward once",
        ),
        ({"evaluate": {"suites": []}}, "evaluate.suites: [] is not allowed; allowed: "),
        (suites({}), "evaluate.suites[0].images_per_tag, images_per_prompt: neither given; allowed: one of the two"),
        (
            suites({"images_per_tag": 1, "images_per_prompt": 1}),
            "evaluate.suites[0].images_per_tag, images_per_prompt: both given; allowed: one of the two",
        ),
        (
            suites({"images_per_tag": 1, "rewards": ["hpsv2"]}),
            "evaluate.suites: a: rewards: 'hpsv2' is not one of evaluate.rewards; allowed: clipscore, world_verifier",
        ),
        (
            suites({"images_per_tag": 1, "rewards": ["clipscore", "clipscore"]}),
            "evaluate.suites[0].rewards: ['clipscore', 'clipscore']; allowed: each name once",
        ),
        (
            suites({"images_per_tag": 1, "rewards": ["clipscore"]}),
            "evaluate.rewards: world_verifier scores no suite; allowed: rewards that a suite names",
        ),
        (
            suites({"images_per_tag": 1}, {"images_per_tag": 2}),
            "evaluate.suites: 'a' occurs 2 times; allowed: each name once",
        ),
        (suites({"name": "A b", "images_per_tag": 1}), "evaluate.suites[0].name: 'A b' is not allowed; allowed: "),
        (suites({"max_prompts": 0, "images_per_tag": 1}), "evaluate.suites[0].max_prompts: 0 is not allowed; allowed:"),
        (suites({"prompt": "x", "images_per_tag": 1}), "evaluate.suites[0].prompt: unknown key"),
        (
            {"evaluate": {"models": ["student_base", "train_rtdmd"]}},
            "evaluate.models: student_base with model.student: null, where the student's base is the teacher's;",
        ),
        (
            {"evaluate": {"models": ["imported", "train_rtdmd"]}},
            "evaluate.imported: None with imported in models; allowed: a folder that `rtdmd import` wrote",
        ),
        (
            {"evaluate": {"imported": "./a"}},
            "evaluate.imported: './a' without imported in models; allowed: null",
        ),
        ({"evaluate": {"etas": [0.0, 1.5]}}, "evaluate.etas: [0.0, 1.5]; allowed: numbers from 0 to 1, each once"),
        ({"evaluate": {"models": ["teacher"]}}, "evaluate.etas: [0.0, 1.0] without train_rtdmd in models; allowed: []"),
        (
            {"train_acdmd": {"renoise": {"low": 0.99}}},
            "train_acdmd.renoise: no setting any more, always 0.01, 0.02 and 0.98 (RENOISE_MARGIN, RENOISE_LOW and",
        ),
        (
            {"prepare_prompts": {"sets": {"train": [{"name": "world"}]}}},
            "prepare_prompts.sets.train[0].split is missing; allowed: which captions: train or heldout",
        ),
        ({"publish": {"dry_run": False}}, "publish.repo_id: None with dry_run: false; allowed: owner/name"),
        (
            {"train_acdmd": {"iterations": 0}},
            "train_acdmd.watch.every: 250 with iterations: 0, so that nothing is ever watched; allowed: 0",
        ),
        ({"train_acdmd": {"generator_every": 2000}}, "would never be trained; allowed: 1 to iterations = 1000"),
    ],
)
def test_what_is_wrong_is_one_line_with_key_value_and_allowed(changes: dict, expected: str) -> None:
    assert expected in message(changes)


def test_no_key_may_be_left_out_or_given_twice(tmp_path: Path) -> None:
    text = Path("params.yaml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("  eta:")]
    with pytest.raises(UserError, match=r"model.eta is missing"):
        parse_params(text.replace(line + "\n", ""))
    number = text.splitlines().index(line) + 2
    with pytest.raises(UserError, match=f"params.yaml:{number}: not YAML: the key 'eta' is given twice"):
        parse_params(text.replace(line, f"{line}\n{line}"))
    with pytest.raises(UserError, match=r"no such file; `rtdmd params world > "):
        load_params(tmp_path / "params.yaml")


def test_the_tree_cannot_be_changed() -> None:
    params = preset("world")
    with pytest.raises(ValidationError, match=r"frozen"):
        params.model.eta = 0.5


def test_recipe_published_is_the_public_codes_settings() -> None:
    stage = preset("world", RECIPES["published"]).train_rtdmd
    assert (stage.weights.policy, stage.weights.matching, stage.weights.backprop) == (1.0, 1e-3, 1e-4)
    assert (stage.density, stage.clip_range, stage.advantage_std, stage.subset_factor) == (
        "published",
        1e-5,
        "batch",
        False,
    )
    assert (stage.generator_optimizer.lr, stage.ema_decay, stage.ema_every) == (3e-6, 0.9, 8)
    assert (stage.generator_optimizer.weight_decay, stage.fake_optimizer.weight_decay) == (1e-4, 0.0)


def test_hub_ids_have_exactly_two_parts() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert preset("world", {"model": {"teacher": "stabilityai/sd", "revision": commit}}).model.is_hub_id
    for folder in ("data/world/teacher", "./a/b", "../a", "/a/b", "teacher"):
        assert not preset("world", {"model": {"teacher": folder}}).model.is_hub_id


@pytest.mark.parametrize(
    "name",
    ["a/b--c", "a/b..c", "ä/b", "a/é", "a/-b", "a/b.", "a/b.git", "a", "a/b/c", "a b/c", "a/" + "b" * 95, "a/b\n"],
)
def test_a_repository_that_the_hub_cannot_have_is_refused(name: str) -> None:
    """Before the run, not after it."""
    with pytest.raises(UserError, match=r"publish\.repo_id: .*; allowed: owner/name, each of ASCII letters"):
        preset("smoke", {"publish": {"repo_id": name}})


@pytest.mark.parametrize("name", ["a/b--c", "a/b..c", "a/é", "a/-b", "a/b.", "a/b.git", "a/" + "b" * 95])
def test_a_teacher_or_scorer_that_the_hub_cannot_have_is_refused(name: str) -> None:
    """With a commit and without: the name is the fault."""
    says = rf"{{}}: {re.escape(repr(name))}; allowed: owner/name, each of .* is written \./{re.escape(name)}\)"
    for revision in ("1" * 40, None):
        with pytest.raises(UserError, match=says.format("^preset world: model.teacher")):
            preset("world", {"model": {"teacher": name, "revision": revision}})
        rewards = [{"name": "hpsv2", "model": "a/b", "revision": "1" * 40, "base": name, "base_revision": revision}]
        with pytest.raises(UserError, match=says.format("rewards.*base")):
            preset("world", {"train_rtdmd": {"rewards": rewards}})
    assert preset("world", {"model": {"teacher": f"./{name}"}}).model.teacher == f"./{name}"


@pytest.mark.parametrize("name", ["me/my-model", "a_b/c.d-e_f", "1/2", "A/" + "b" * 94])
def test_a_repository_that_the_hub_can_have(name: str) -> None:
    assert preset("smoke", {"publish": {"repo_id": name}}).publish.repo_id == name
    assert is_hub_name(name)
    validate_repo_id(name)  # the client's own rules


def test_data_sets_are_hub_names() -> None:
    assert preset("smoke", {"publish": {"datasets": ["squad", "a/b"]}}).publish.datasets == ("squad", "a/b")
    with pytest.raises(UserError, match=r"publish\.datasets: 'a/b--c'; allowed: owner/name, or the name alone"):
        preset("smoke", {"publish": {"datasets": ["squad", "a/b--c"]}})
