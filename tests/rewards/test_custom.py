"""A reward of one's own: a folder beside params.yaml, whose files are inputs of the stage that uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rtdmd.common.errors import UserError
from rtdmd.config import preset, reward_params
from rtdmd.pipeline.model_inputs import hash_models, set_links
from rtdmd.rewards.custom import EXAMPLE, stand_in
from rtdmd.rewards.registry import load_reward

IMAGES = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
PAIR: tuple[Any, ...] = (["a", "b"], [None, {"number": 2}])
HELPED = """
from .helper import strength

RANGE = (0, 2)


def load(device):
    return lambda images, prompts, metadata: strength(metadata).to(device) * images.mean((1, 2, 3))
"""
HELPER = """
import torch


def strength(metadata):
    return torch.tensor([1.0 if one is None else float(one["number"]) for one in metadata])
"""


def written(folder: Path, code: str, **others: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reward.py").write_text(code)
    for name, text in others.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def test_it_scores_with_its_own_helpers_and_the_prompts_metadata(tmp_path: Path) -> None:
    written(tmp_path / "mine", HELPED, helper=HELPER)
    reward = load_reward(reward_params(name="custom", module="./mine"), root=tmp_path)
    means = IMAGES.mean((1, 2, 3))
    assert torch.allclose(reward.score(IMAGES, *PAIR), means * torch.tensor([1.0, 2.0]))
    assert reward.range == (0.0, 2.0) and sorted(reward.identity()["files"]) == ["helper.py", "reward.py"]
    written(tmp_path / "mine", HELPED, helper=HELPER.replace("1.0", "3.0"))
    again = load_reward(reward_params(name="custom", module="./mine"), root=tmp_path)
    assert torch.allclose(again.score(IMAGES, *PAIR), means * torch.tensor([3.0, 2.0]))  # nothing of before is kept


@pytest.mark.parametrize(("name", "passes"), [("custom", False), ("custom_gradient", True)])
def test_its_gradient_reaches_the_images_where_its_name_promises_it(name: str, passes: bool, tmp_path: Path) -> None:
    stand_in(tmp_path / "mine")
    reward = load_reward(reward_params(name=name, module="./mine"), root=tmp_path)
    images = IMAGES.clone().requires_grad_()
    scores = reward.score(images, *PAIR)
    assert (reward.differentiable, scores.requires_grad) == (passes, passes)
    if passes:
        (gradient,) = torch.autograd.grad(scores.sum(), images)
        assert torch.allclose(gradient[:, 0], torch.tensor(1 / 36)) and not gradient[:, 1:].any()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package\n", r"reward\.py cannot be imported \(No module named 'no_such_package'\)$"),
        ("def load(device) return None\n", r"reward\.py cannot be imported \("),
        ("def load(device): return None\n", r"reward\.py has no RANGE; docs/extending\.md shows a complete one$"),
        ("RANGE = (0, 1)\n", r"reward\.py has no load; docs/extending\.md shows a complete one$"),
    ],
)
def test_code_that_is_no_reward_is_one_line_that_names_the_file(code: str, message: str, tmp_path: Path) -> None:
    written(tmp_path / "mine", code)
    with pytest.raises(UserError, match=message) as refused:
        load_reward(reward_params(name="custom", module="./mine"), root=tmp_path)
    assert str(refused.value).startswith("rewards: custom: module: ") and "\n" not in str(refused.value)


def test_scores_of_another_shape_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "mine", EXAMPLE.replace(".mean((1, 2))", ".mean(1)"))
    reward = load_reward(reward_params(name="custom", module="./mine"), root=tmp_path)
    with pytest.raises(UserError, match=r"reward\.py scored 2 images by \(2, 6\); one number each$"):
        reward.score(IMAGES, *PAIR)


def test_code_of_the_hub_is_not_run() -> None:
    with pytest.raises(ValidationError, match=r"allowed: a folder of this machine, whose code is run; .*\./some/one"):
        reward_params(name="custom", module="some/one", revision="0" * 40)


def test_its_files_are_inputs_of_the_stage_so_that_an_edit_runs_it_again(tmp_path: Path, tiny_teacher: Path) -> None:
    written(tmp_path / "mine", HELPED, helper=HELPER)
    watch = {"watch": {"every": 0}}
    rewards = [{"name": "custom", "module": "./mine"}]
    stage_two = watch | {"rewards": rewards, "weights": {"backprop": 0.0}}
    judged = {"rewards": [{"name": "world_verifier", "soft_weight": 0.5}], "features_model": None}
    model = {"teacher": str(tiny_teacher)}
    params = preset("smoke", {"model": model, "train_acdmd": watch, "train_rtdmd": stage_two, "evaluate": judged})
    set_links(tmp_path, params)
    links = tmp_path / "inputs/train_rtdmd/custom.module"
    assert sorted(path.name for path in links.iterdir()) == ["helper.py", "reward.py"]
    assert (links / "helper.py").read_text() == HELPER
    before = hash_models(tmp_path, params, "train_rtdmd")
    (tmp_path / "mine/helper.py").write_text(HELPER + "# edited\n")
    after = hash_models(tmp_path, params, "train_rtdmd")
    assert before.keys() == after.keys() and before != after
