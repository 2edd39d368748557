"""What no setting can say alone: pairs of them that end in a traceback hours later, or in a result that is none."""

from __future__ import annotations

from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.config import PRESETS, Params, preset
from rtdmd.config.presets import RECIPES, merged
from rtdmd.methods import METHODS

UNWEIGHTED = [{"name": "world_verifier", "weight": 0.0, "soft_weight": 0.7}]

A_SUITE = {"name": "a", "prompts": "heldout", "images_per_tag": 1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"train_acdmd": {"warmup": 251}},
            "train_acdmd.warmup: 251, so that generator_optimizer.lr is never reached; allowed: 0 to 250",
        ),
        (
            {"train_acdmd": {"fake_per_step": True, "rollout_stop": "last"}},
            "train_acdmd.fake_per_step: true with rollout_stop: last, so that no fake score but the last step's is",
        ),
        (
            {"train_rtdmd": {"epochs": 140, "validation": {"every": 141}}},
            "train_rtdmd.validation.every: 141 with epochs: 140, so that no student is ever better than stage one's;"
            " allowed: 0 to 140",
        ),
        (
            {"train_rtdmd": {"epochs": 140, "ema_every": 141}},
            "train_rtdmd.ema_every: 141 with epochs: 140, so that the EMA, which is what the run delivers, stays"
            " stage one's student; allowed: 1 to 140",
        ),
        (
            {"train_rtdmd": {"annealing": {"guidance": 0.75, "epochs": 2}, "fake_adapter": "new"}},
            "train_rtdmd.annealing.guidance: 0.75 with fake_adapter: new, of whose two adapters it would scale one;"
            " allowed: 0, or fake_adapter: continued",
        ),
        (
            {"train_rtdmd": {"epochs": 140, "ema_every": 142, "ema_warmup": True}},
            "train_rtdmd.ema_every: 142 with epochs: 140, so that the EMA, which is what the run delivers, stays"
            " stage one's student; allowed: 1 to 141",
        ),
        (
            {"train_rtdmd": {"subset_factor": True, "loss_average": "all_steps"}},
            "train_rtdmd.subset_factor: true with loss_average: all_steps, another weight of the policy term; allowed:",
        ),
        (
            {"train_acdmd": {"recipe": "published"}},
            "train_acdmd.generator_every: 4 with recipe: published; allowed: 10, or recipe: custom",
        ),
        (
            {"train_rtdmd": {"weights": {"policy": 0.0, "reference_kl": 0.1}, "candidate_steps": [99]}},
            "train_rtdmd.candidate_steps: [99]; allowed: 0 to model.num_steps - 2 = 2",
        ),
        (
            {"train_rtdmd": {"matching_path": "reward", "weights": {"policy": 0.0}, "candidate_steps": [99]}},
            "train_rtdmd.candidate_steps: [99]; allowed: 0 to model.num_steps - 2 = 2",
        ),
        (
            {"train_rtdmd": {"weights": {"policy": 0.0, "nft": 1.0}, "candidate_steps": [99]}},
            "train_rtdmd.candidate_steps: [99]; allowed: 0 to model.num_steps - 2 = 2",
        ),
        (
            {"train_rtdmd": {"matching_path": "reward", "weights": {"policy": 0.0}}, "model": {"eta": 0}},
            "model.eta: 0 with train_rtdmd.matching_path: reward; allowed: above 0",
        ),
        (
            {"train_rtdmd": {"weights": {"policy": 0.0, "reference_kl": 0.1}}, "model": {"eta": 0}},
            "model.eta: 0 with train_rtdmd.weights.reference_kl above 0; allowed: above 0",
        ),
        (
            {"model": {"num_steps": 2}},
            "train_rtdmd.candidate_steps: [1]; allowed: 0 to model.num_steps - 2 = 0 (the last step is deterministic),"
            " as candidate_steps: [0]",
        ),
        (
            {"model": {"num_steps": 2}, "train_rtdmd": {"candidate_steps": [0, 1, 2], "trained_steps": 2}},
            "train_rtdmd.candidate_steps: [0, 1, 2]; allowed: 0 to model.num_steps - 2 = 0 (the last step is"
            " deterministic), as candidate_steps: [0], trained_steps: 1",
        ),
        (
            {"model": {"num_steps": 3}, "train_rtdmd": RECIPES["published"]["train_rtdmd"]},
            "train_rtdmd.candidate_steps: [0, 1, 2]; allowed: 0 to model.num_steps - 2 = 1 (the last step is"
            " deterministic), as candidate_steps: [0, 1], recipe: custom",
        ),
        (
            {"train_rtdmd": {"guidance_range": [3, 5]}},
            "train_rtdmd.guidance_range: [3, 5] with model.guidance: 2; allowed: null, or two numbers from 1,",
        ),
        ({"model": {"width": 36}}, "model.width: 36 with resolution: 36, a square; allowed: null"),
        (
            {"model": {"width": 24}, "evaluate": {"suites": [A_SUITE | {"resolution": 36}]}},
            "evaluate.suites: a: resolution: 36 with model.width: 24; allowed: null, the model's own size, or the side",
        ),
        (
            {"model": {"num_steps": 1, "shift": 5}},
            "model.shift: 5 with num_steps: 1, whose only level is 1; allowed: null",
        ),
        (
            {"model": {"num_steps": 1}, "train_rtdmd": {"candidate_steps": [0]}},
            "model.num_steps: 1 with train_rtdmd.weights.policy above 0; allowed: 2 or more, or"
            " train_rtdmd.weights.policy: 0 (",
        ),
        (
            {"train_rtdmd": {"weights": {"policy": 0.0, "nft": 1.0}}, "model": {"eta": 0}},
            "train_rtdmd.share_initial: true with model.eta: 0 and train_rtdmd.weights.nft above 0: the images of a",
        ),
        (
            {"train_rtdmd": {"weights": {"policy": 0.0, "surrogate": 1.0}}, "model": {"eta": 0}},
            "train_rtdmd.share_initial: true with model.eta: 0 and train_rtdmd.weights.surrogate above 0: the images",
        ),
        (
            {"train_rtdmd": {"matching_guidance": 0.3, "weights": {"matching": 0.0}}},
            "train_rtdmd.matching_guidance: 0.3 with weights.matching: 0, on which it acts; allowed: 1",
        ),
        (
            {"train_rtdmd": {"relative": {"liked": ["a"], "disliked": ["b"]}, "weights": {"backprop": 0.0}}},
            "train_rtdmd.relative.liked: ['a'] with weights.backprop: 0, on which it acts; allowed: []",
        ),
        (
            {"train_rtdmd": {"relative": {"liked": ["a"]}}},
            "train_rtdmd.relative.liked: ['a'] with disliked: []; allowed: words for both, or for none",
        ),
        (
            {"train_rtdmd": {"last_step_from": "renoised"}},
            "train_rtdmd.matching_path: random_step with last_step_from: renoised; allowed: last_step",
        ),
        (
            {
                "train_rtdmd": {
                    "last_step_from": "renoised",
                    "matching_path": "last_step",
                    "backprop_at": "last_step",
                    "matching_gain": 1.0,
                }
            },
            "train_rtdmd.matching_gain: 1 with last_step_from: renoised, whose images have no reward yet; allowed: 0",
        ),
        (
            {"train_rtdmd": {"matching_path": "last_step", "matching_gain": 1.0, "weights": {"matching": 0.0}}},
            "train_rtdmd.matching_gain: 1.0 with weights.matching: 0, on which it acts; allowed: 0",
        ),
        (
            {"train_rtdmd": {"annealing": {"renoise": True, "epochs": 9}, "weights": {"matching": 0.0}}},
            "train_rtdmd.annealing.renoise: true with weights.matching: 0, on which it acts; allowed: false",
        ),
        (
            {"train_rtdmd": {"annealing": {"guidance": 0.75}}},
            "train_rtdmd.annealing.epochs: 0 with annealing.guidance: 0.75 and annealing.renoise: false, which then",
        ),
        (
            {"train_rtdmd": {"credit": "gain", "weights": {"policy": 0.0}}},
            "train_rtdmd.credit: gain with weights.policy: 0; allowed: trajectory",
        ),
        (
            {"train_rtdmd": {"rewards": UNWEIGHTED, "weights": {"backprop": 0.0}}},
            "train_rtdmd.weights.policy: 1 with weight: 0 for every reward whose policy is not false;",
        ),
        (
            {"train_rtdmd": {"rewards": UNWEIGHTED, "weights": {"backprop": 0.0, "policy": 0.0, "nft": 1.0}}},
            "train_rtdmd.weights.nft: 1 with weight: 0 for every reward whose policy is not false;",
        ),
        (
            {
                "train_rtdmd": {
                    "rewards": UNWEIGHTED,
                    "weights": {"backprop": 0.0, "policy": 0.0},
                    "validation": {"every": 5},
                }
            },
            "train_rtdmd.validation.every: 5 with weight: 0 for every reward, so that no student is better than",
        ),
        (
            {
                "adapter": {"mode": "full"},
                "publish": {"format": "merged"},
                "train_rtdmd": {"annealing": {"guidance": 0.75, "epochs": 40}},
            },
            "train_rtdmd.annealing.guidance: 0.75 with adapter.mode: full, which has no adapter to scale; allowed: 0,",
        ),
        (
            {"adapter": {"mode": "full"}, "publish": {"format": "lora"}},
            "publish.format: lora with adapter.mode: full, which trains no adapter; allowed: merged, or adapter.mode",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_their_names(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        preset("world", changes)
    assert str(caught.value).startswith(f"preset world: {expected}")
    assert "\n" not in str(caught.value) and "allowed: " in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_every_recipe_and_method_is_allowed_in_every_preset_that_is_long_enough(name: str) -> None:
    """The smoke run is too short for an average that is updated every eighth epoch, and a generator's tenth turn."""
    longer = {"train_acdmd": {"iterations": 10}, "train_rtdmd": {"epochs": 8}} if name == "smoke" else {}
    methods = [method.changes() for method in METHODS.values()]
    for changes in [*RECIPES.values(), *methods]:
        assert preset(name, merged(longer, changes))


def test_a_sampler_of_one_step_trains_what_needs_no_noise() -> None:
    weights = {"policy": 0.0, "matching": 1.0, "backprop": 0.1}
    assert preset("world", {"model": {"num_steps": 1}, "train_rtdmd": {"weights": weights}}).model.num_steps == 1
    assert preset("world", {"model": {"eta": 0.0}, "train_rtdmd": {"weights": weights}}).model.eta == 0


OFF = {"every": 0}
SETS = {
    "a": [{"name": "world", "split": "train"}],
    "b": [{"name": "world", "split": "train"}],
    "c": [{"name": "world", "split": "heldout"}],
}


def with_sets(one: str, two: str, *judged: str) -> Params:
    """The world with three sets, of which the stages name these."""
    suites = [{"name": f"suite-{name}", "prompts": name, "images_per_tag": 1} for name in judged]
    one_and_two = {"train_acdmd": {"prompts": one, "watch": OFF}, "train_rtdmd": {"prompts": two, "watch": OFF}}
    named = one_and_two | {"evaluate": {"suites": suites}}
    return preset("world", {"prepare_prompts": {"sets": SETS}, **named})


def test_sets_are_those_that_the_stages_name_each_once() -> None:
    params = with_sets("a", "b", "c")
    assert (params.training_sets, params.evaluation_sets) == (("a", "b"), ("c",))
    params = with_sets("b", "b", "c")  # a set that no stage names is allowed
    assert (params.training_sets, params.evaluation_sets) == (("b",), ("c",))
    assert with_sets("a", "a", "heldout", "c", "b").evaluation_sets == ("heldout", "c", "b")


@pytest.mark.parametrize(
    ("one", "two", "judged", "says"),
    [
        ("d", "a", "c", "train_acdmd.prompts: 'd'; allowed: one of prepare_prompts.sets: train, heldout, a, b, c"),
        (
            "a",
            "trian",
            "c",
            "train_rtdmd.prompts: 'trian'; allowed: one of prepare_prompts.sets: train, heldout, a, b, c; did you",
        ),
        ("a", "b", "d", "evaluate.suites: suite-d: prompts: 'd'; allowed: one of prepare_prompts.sets"),
        ("c", "a", "c", "train_acdmd.prompts: 'c', which is evaluated (evaluate.suites); allowed: a set that is not"),
        ("a", "c", "c", "train_rtdmd.prompts: 'c', which is evaluated (evaluate.suites); allowed: a set that is not"),
    ],
)
def test_a_set_that_is_not_there_or_has_two_uses_is_refused(one: str, two: str, judged: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        with_sets(one, two, judged)
    assert str(caught.value).startswith(f"preset world: {says}")
