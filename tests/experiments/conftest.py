"""A repository folder in which the tables can run: tiny random models for every name that the presets have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rtdmd.experiments.jobs import Jobs
from rtdmd.experiments.settings import LOCAL
from rtdmd.rewards.registry import REWARDS
from tests.rewards.tiny_scorers import entry
from tests.tiny import make_tiny_teacher
from tests.workflow.checkout import WHO, git
from tests.workspace import REPOSITORY

SCORERS = ("clipscore", "aesthetic", "pickscore", "hpsv2", "imagereward", "hpsv3", "geneval", "geneval2", "ocr")
IMAGES = {"drawbench": 2, "geneval": 2, "hpsv3": 2, "geneval2": 2, "ocr": 2}
DOG, CAT = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
GENEVAL = {
    "single_object": [DOG],
    "two_object": [DOG, CAT],
    "counting": [DOG | {"count": 2}],
    "colors": [DOG | {"color": "red"}],
    "position": [CAT, DOG | {"position": ["left of", 0]}],
    "color_attr": [DOG | {"color": "red"}, CAT | {"color": "blue"}],
}
WORDS = ("red circle", "green circle", "blue circle", "yellow circle", "red cross", "green cross")


def write_prompts(folder: Path) -> None:
    """Every file that a preset names, with a few prompts."""
    folder.mkdir(parents=True)
    records = [
        {"tag": tag, "include": include, "prompt": f"a {words}"}
        for (tag, include), words in zip(GENEVAL.items(), WORDS, strict=True)
    ]
    trained = [record | {"prompt": f"a photo of {record['prompt']}"} for record in records]
    asked = {"prompt": "two blue circles", "vqa_list": [["How many?", "two"]], "skills": ["count"]}
    lines = {
        "drawbench.txt": ["a blue square", "a red square"],
        "hpsv3.txt": ["a yellow cross"],
        "ocr.txt": ['a "cat"'],
        "pickscore_train.txt": ["a yellow triangle", "two red crosses", "a green square"],
        "geneval.jsonl": [json.dumps(record) for record in records],
        "geneval_train.jsonl": [json.dumps(record) for record in trained],
        "geneval2.jsonl": [json.dumps(asked)],
    }
    for name, text in lines.items():
        (folder / name).write_text("\n".join(text) + "\n", encoding="utf-8")


def tiny_settings(scorers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What workflow/experiments.yaml says there: the world's shapes in place of every preset's, and the least work."""
    model = {
        "family": "sd3",
        "teacher": "./data/teacher",
        "revision": None,
        "resolution": 36,
        "dtype": "float32",
        "teacher_steps": 2,
        "max_sequence_length": 12,
    }
    student = {"model": {"student": {"model": "./data/student", "revision": None}}}
    one = {
        "recipe": "custom",
        "iterations": 2,
        "batch_size": 2,
        "micro_batch": 2,
        "generator_every": 2,
        "save_every": 2,
        "watch": {"every": 0},
    }
    two = {
        "watch": {"every": 0},
        "epochs": 1,
        "prompts_per_epoch": 1,
        "group_size": 2,
        "fake_batch_size": 2,
        "last_step_batch_size": 2,
    }
    return {
        "params": {
            "run": {"threads": 1, "device": "cpu"},
            "model": model,
            "adapter": {"rank": 2, "alpha": 4},
            "cache_teacher": {"mode": "cache", "storage_dtype": "float32", "unpadded": False, "budget_gib": 1.0},
            "train_acdmd": one,
            "train_rtdmd": two
            | {"recipe": "custom", "prompts": "geneval_train", "ema_every": 1, "micro_batch": 2, "image_log_every": 0},
            "evaluate": {"batch_size": 16},
            "report": {"grid_prompts": 5},
            "publish": {"prompt": "a red circle"},
        },
        "presets": {"flux2-klein-4b": student, "flux2-klein-9b": student},
        "scorers": scorers,
        "sources": {},
        "checkpoints": {
            "sd35m-checkpoint": {"path": "data/published/teacher"},
            "flux2-klein-4b-checkpoint": {"path": "data/published/student"},
            "flux2-klein-9b-checkpoint": {"folder": "models/flux2-klein-4b-checkpoint"},
            "flux1-dev-checkpoint": {"folder": "models/sd35m-checkpoint"},
        },
        "suites": {name: {"resolution": None, "images_per_prompt": number} for name, number in IMAGES.items()},
    }


def commit(root: Path, *names: str) -> None:
    """A commit of these files, in a repository at ``root``."""
    if not (root / ".git").is_dir():
        git(root, "init", "--quiet")
    git(root, "add", *names)
    git(root, *WHO, "commit", "--quiet", "--message", "as it is", "--", *names)


@pytest.fixture(scope="session")
def tiny_jobs(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """The runs of every table in a folder where nothing has run."""
    root = tmp_path_factory.mktemp("experiments")
    (root / "rtdmd").symlink_to(REPOSITORY / "rtdmd")
    shutil.copy(REPOSITORY / "dvc.yaml", root / "dvc.yaml")
    commit(root, "dvc.yaml")
    write_prompts(root / "data" / "prompts")
    shutil.copytree(tiny_teacher, root / "data" / "teacher")
    make_tiny_teacher(root / "data" / "student", seed=1)
    scorers = {}
    for name in SCORERS:
        made = entry(name, root / "data" / name).model_dump(mode="json")
        files = {key for field, source in REWARDS[name].settings.sources.items() for key in (field, source.pin)}
        scorers[name] = {key: value for key, value in made.items() if key in files}
    (root / LOCAL).parent.mkdir()
    (root / LOCAL).write_text(yaml.safe_dump(tiny_settings(scorers)), encoding="utf-8")
    return Jobs.of(root)
