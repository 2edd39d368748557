"""Rewards and orders that the prompts can never serve are said before a run, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.config import PRESETS, preset
from rtdmd.config.presets import merged
from rtdmd.config.prompt_needs import check_prompts

CLIPSCORE = {"name": "clipscore", "model": "./m"}
WORLD = {"name": "world", "split": "train"}
GENEVAL = {"name": "geneval", "model": "./d", "colour_model": "./c", "soft_weight": 1.0}


def changed(train: list[Any], rewards: list[Any], order: str = "uniform", eval_rewards: list[Any] | None = None) -> Any:
    sections = {"prepare_prompts": {"sets": {"train": train}}, "train_acdmd": {"prompt_order": "uniform"}}
    sections["train_rtdmd"] = {"rewards": [CLIPSCORE, *rewards], "prompt_order": order}
    sections["evaluate"] = {"rewards": eval_rewards or [CLIPSCORE]}
    return preset("world", sections)


def file(name: str, path: str) -> dict[str, str]:
    return {"name": name, "path": f"data/prompts/{path}"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_served(name: str) -> None:
    check_prompts(preset(name))


@pytest.mark.parametrize(
    ("train", "rewards", "order", "says"),
    [
        ([WORLD], [GENEVAL], "uniform", r"train_rtdmd\.rewards: geneval needs metadata, .*train\[0\] \(world\) never"),
        (
            [file("geneval", "g.jsonl"), file("pickscore", "p.txt")],
            [GENEVAL],
            "uniform",
            r"geneval needs metadata, which prepare_prompts\.sets\.train\[1\] \(pickscore, data/prompts/p\.txt\) never"
            r" has; allowed: without geneval, or prompts of generated, geneval, or of a \.jsonl file",
        ),
        (
            [WORLD],
            [{"name": "ocr"}],
            "uniform",
            r"ocr needs a quoted text, which .*train\[0\] \(world\)",
        ),
        (
            [file("pickscore", "p.txt")],
            [],
            "by_tag",
            r"train_rtdmd\.prompt_order: by_tag needs tags, .*train\[0\] \(pickscore, .*p\.txt\) never has;",
        ),
    ],
)
def test_what_the_prompts_never_have_is_refused(train: list[Any], rewards: list[Any], order: str, says: str) -> None:
    params = changed(train, rewards, order)
    with pytest.raises(UserError, match=rf"^params\.yaml: .*{says}"):
        check_prompts(params)
    check_prompts(params, only="train_acdmd")  # which has no part in it


def test_what_a_file_may_have_is_not() -> None:
    check_prompts(changed([file("prompts", "p.jsonl")], [GENEVAL, {"name": "ocr"}], "by_tag"))
    check_prompts(changed([file("prompts", "p.txt")], [{"name": "ocr"}]))
    check_prompts(changed([{"name": "generated", "tags": {"counting": 2}}], [GENEVAL], "by_tag"))


def test_the_evaluation_is_compared_with_its_own_prompts() -> None:
    params = changed([WORLD], [], eval_rewards=[GENEVAL])
    with pytest.raises(
        UserError, match=r"evaluate\.suites: heldout: rewards: geneval .* prepare_prompts\.sets\.heldout\[0\] \(world\)"
    ):
        check_prompts(params, only="evaluate")


def test_each_suite_is_compared_with_its_own_set() -> None:
    """The scorer that one set serves is refused on the other, by suite, scorer and set."""
    sets = {"objects": [file("geneval", "g.jsonl")], "plain": [file("drawbench", "d.txt")]}
    suites: list[dict[str, Any]] = [
        {"name": "objects", "prompts": "objects", "rewards": ["geneval"], "images_per_prompt": 1},
        {"name": "plain", "prompts": "plain", "rewards": ["clipscore"], "images_per_prompt": 1},
    ]
    changes = {"prepare_prompts": {"sets": sets}, "evaluate": {"suites": suites, "rewards": [CLIPSCORE, GENEVAL]}}
    check_prompts(preset("world", changes))
    suites[1]["rewards"] = ["clipscore", "geneval"]
    with pytest.raises(UserError) as caught:
        check_prompts(preset("world", changes), only="evaluate")
    says = "params.yaml: evaluate.suites: plain: rewards: geneval needs metadata, which prepare_prompts.sets.plain[0]"
    assert str(caught.value).startswith(f"{says} (drawbench, data/prompts/d.txt) never has; allowed: without geneval")


def test_every_stage_is_compared_with_its_own_set() -> None:
    """As published: stage one on bare prompts, stage two on GenEval's with its reward, evaluation on bare ones."""
    sets = {
        "pickscore": [file("pickscore", "p.txt")],
        "geneval_train": [file("geneval", "train.jsonl")],
        "drawbench": [file("drawbench", "d.txt")],
    }
    changes: dict[str, Any] = {
        "prepare_prompts": {"sets": sets},
        "train_acdmd": {"prompts": "pickscore", "prompt_order": "uniform"},
        "train_rtdmd": {"prompts": "geneval_train", "prompt_order": "by_tag", "rewards": [CLIPSCORE, GENEVAL]},
        "evaluate": {
            "suites": [{"name": "drawbench", "prompts": "drawbench", "images_per_prompt": 5}],
            "rewards": [CLIPSCORE],
        },
    }
    check_prompts(preset("world", changes))
    swapped = merged(changes, {"train_acdmd": {"prompts": "geneval_train"}, "train_rtdmd": {"prompts": "pickscore"}})
    says = (
        r"^params\.yaml: train_rtdmd\.prompt_order: by_tag needs tags, which prepare_prompts\.sets\.pickscore\[0\]"
        r" \(pickscore, data/prompts/p\.txt\) never has;"
    )
    with pytest.raises(UserError, match=says):
        check_prompts(preset("world", swapped))
    uniform = merged(swapped, {"train_rtdmd": {"prompt_order": "uniform"}})
    says = r"^params\.yaml: train_rtdmd\.rewards: geneval needs metadata, which prepare_prompts\.sets\.pickscore\[0\]"
    with pytest.raises(UserError, match=says):
        check_prompts(preset("world", uniform))
