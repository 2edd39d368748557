"""Evaluations of the student while it trains: what they measure, and what is refused.

That a watched run leaves the weights and curves of one that is not, and a killed one its rows, tests/train has for both
stages; that two processes see what one sees, tests/train/distributed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.backbones.sizes import require_suites
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json
from rtdmd.config import preset, reward_params
from rtdmd.config.presets import WORLD
from rtdmd.config.prompt_needs import check_prompts
from rtdmd.pipeline.model_inputs import model_inputs
from rtdmd.plan.published import TEACHERS
from rtdmd.stages import evaluate, train_rtdmd
from rtdmd.train.engine import journal as journal_module
from rtdmd.train.engine.journal import WATCH_SECONDS, Journal
from rtdmd.train.engine.watch import tag_mean, waiting, watched_rows
from tests.train.workshop import rows_of
from tests.workspace import set_params

CLIP, VERIFIER = WORLD["evaluate"]["rewards"]
OWN = {"name": "own", "prompts": "heldout"}
SMALL = {"name": "small", "prompts": "heldout", "rewards": ["clipscore"], "resolution": 24}
WATCH = {"every": 2, "max_prompts": 7, "images": 2, "suites": [OWN, SMALL], "rewards": [CLIP, VERIFIER]}


def test_a_look_has_the_figures_that_the_evaluation_gives_the_same_prompts(root: Path) -> None:
    """Before the first epoch those of stage one's student, after the last one those of the student that is written, at
    another size too; tags weigh the same though the seventh prompt makes one of them larger. The verifier reads in
    them what it reads in the evaluation's."""
    suites = [suite | {"images_per_prompt": 2, "max_prompts": 7} for suite in (OWN, SMALL)]
    judged = {"suites": suites, "etas": [], "features_model": None}
    moves = {"generator_optimizer": {"lr": 0.05}, "ema_decay": 0.5, "candidate_steps": [0, 1, 2]}
    set_params(root, {"train_rtdmd": {"epochs": 2, "watch": WATCH} | moves, "evaluate": judged})
    shutil.rmtree(root / "results/train_rtdmd")
    train_rtdmd.run(root)
    evaluate.run(root)
    found = read_json(root / "results/evaluate/metrics.json")["suites"]
    start, end = rows_of((root / "results/train_rtdmd/watched.csv").read_bytes())
    assert (start.pop("epoch"), end.pop("epoch")) == (0, 2)
    for row, model in ((start, "train_acdmd"), (end, "train_rtdmd")):
        assert list(row) == ["own/clipscore", "own/world_verifier", "small/clipscore"]
        for name, value in row.items():
            suite, scorer = name.split("/")
            assert value == pytest.approx(found[suite][model][scorer]["mean"], abs=2e-6), (model, name)
    assert abs(start["own/clipscore"] - end["own/clipscore"]) > 1e-4
    lines = (root / "results/train_rtdmd/watched_parses.csv").read_text().splitlines()
    assert lines.pop(0) == "epoch,suite,prompt_id,index,tag,strict,background,cells"
    judged_lines = (root / "results/evaluate/parses.csv").read_text().splitlines()
    for number, model in ((0, "train_acdmd"), (2, "train_rtdmd")):
        read = [line.split(",", 2)[2] for line in judged_lines if line.startswith(f"own,{model},")]
        assert len(read) == 14 and read == [
            line.split(",", 2)[2] for line in lines if line.startswith(f"{number},own,")
        ]
    assert len(lines) == 28
    (run_dir,) = (root / ".rtdmd/runs").glob("train_rtdmd-*")
    first, last = map(json.loads, (run_dir / "journal.jsonl").read_text().splitlines())
    assert first["watch_start/small/clipscore"] == pytest.approx(start["small/clipscore"], rel=1e-7)
    assert last["watch/own/clipscore"] == pytest.approx(end["own/clipscore"], rel=1e-7)
    assert first[WATCH_SECONDS] > 0 and last[WATCH_SECONDS] > 0
    assert "watch" not in (root / "results/train_rtdmd/curves.csv").read_text()


def test_tags_weigh_the_same() -> None:
    scores = torch.tensor([1.0, 0.0, 0.5, 0.25])
    assert tag_mean(scores, ["a", "a", "a", "b"]) == (0.5 + 0.25) / 2
    assert tag_mean(scores, [None] * 4) == 0.4375


def test_weights_wait_off_the_device_where_there_are_any() -> None:
    assert waiting(reward_params(**CLIP)).offload is True
    assert waiting(reward_params(**VERIFIER)).offload is False
    assert waiting(reward_params(**CLIP, socket="clip.sock")).offload is False


def test_a_look_is_no_part_of_a_steps_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 seconds an evaluation took 8: 4 images in the other 2."""
    now = iter([0.0, 10.0])
    monkeypatch.setattr(journal_module.time, "perf_counter", lambda: next(now))
    journal = Journal(tmp_path / "journal.jsonl", "epoch")
    journal.restore("")
    journal.add(1, {"watch_start/a/b": 0.25, "watch/a/b": 0.5, WATCH_SECONDS: 8.0}, images=4)
    (step,) = journal.steps()
    assert (step["machine/seconds"], step["machine/images_per_second"]) == (2.0, 2.0)
    assert watched_rows(journal) == [{"epoch": 0, "a/b": 0.25}, {"epoch": 1, "a/b": 0.5}]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"suites": []}, "train_acdmd.watch.suites: [] with every: 250; allowed: one or more, or every: 0"),
        ({"rewards": []}, "train_acdmd.watch.rewards: [] with every: 250; allowed: one or more, or every: 0"),
        ({"suites": [OWN, OWN]}, "train_acdmd.watch.suites: 'own' occurs 2 times; allowed: each name once"),
        (
            {"suites": [OWN | {"rewards": ["hpsv2"]}]},
            "train_acdmd.watch.suites: own: rewards: 'hpsv2' is not one of watch.rewards; allowed: clipscore,",
        ),
        ({"suites": [SMALL]}, "train_acdmd.watch.rewards: world_verifier scores no suite; allowed: rewards that a"),
        (
            {"suites": [OWN | {"images_per_tag": 1}]},
            "train_acdmd.watch.suites[0].images_per_tag: unknown key (value 1); allowed: name, prompts, rewards,",
        ),
        (
            {"suites": [OWN | {"prompts": "held"}]},
            "train_acdmd.watch.suites: own: prompts: 'held'; allowed: one of prepare_prompts.sets: train, heldout",
        ),
        (
            {"suites": [OWN | {"prompts": "train"}]},
            "train_acdmd.prompts: 'train', which is watched (train_acdmd.watch.suites); allowed: a set that is not",
        ),
    ],
)
def test_a_watch_that_cannot_be_is_refused_by_its_key(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        preset("world", {"train_acdmd": {"watch": changes}})
    assert str(caught.value).startswith(f"preset world: {says}")


def test_a_scorer_without_what_it_needs_and_a_size_that_cannot_be_drawn_are_named_by_the_suite() -> None:
    suite = {"name": "own", "prompts": "drawbench", "rewards": ["geneval"]}
    scorer = {"name": "geneval", "model": "./a", "colour_model": "./b", "soft_weight": 1.0}
    params = preset("sd3m", {"train_rtdmd": {"watch": {"suites": [suite], "rewards": [scorer]}}})
    with pytest.raises(UserError, match=r"^params\.yaml: train_rtdmd\.watch\.suites: own: rewards: geneval needs meta"):
        check_prompts(params, "train_rtdmd")
    check_prompts(params, "train_acdmd")
    suites = [{"name": "own", "prompts": "drawbench", "rewards": ["clipscore"], "resolution": 1032}]
    rewards = [{"name": "clipscore", "model": "./a"}]
    params = preset("sd3m", {"train_acdmd": {"watch": {"suites": suites, "rewards": rewards}}})
    with pytest.raises(UserError, match=r"^train_acdmd\.watch\.suites: own: resolution: 1032 is not a multiple of 16"):
        require_suites(params, TEACHERS[params.model.teacher], params.model.teacher)


def test_what_is_not_watched_needs_nothing() -> None:
    """No set, and no scorer's files; a scorer that a stage trains with and is watched by has two places."""
    suite = {"name": "own", "prompts": "more"}
    sets = WORLD["prepare_prompts"]["sets"] | {"more": [{"name": "world", "split": "heldout"}]}
    found = {}
    for every in (0, 20):
        watch = {"train_rtdmd": {"watch": WATCH | {"suites": [suite], "every": every}}}
        params = preset("smoke", {"prepare_prompts": {"sets": sets}} | watch)
        found[every] = (params.evaluation_sets, [model.place for model in model_inputs(params, "train_rtdmd")])
    assert found[0] == (("heldout",), ["clipscore.model"])
    assert found[20] == (("heldout", "more"), ["clipscore.model", "watch/clipscore.model"])
