"""Runs in a copy of the repository to which a scorer was added by the recipe: what people then do, in one process.

python -m tests.rewards.recipe_run NAME        in the copy
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from rtdmd.cli import main
from rtdmd.common.files import read_json
from rtdmd.rewards.registry import REWARDS
from rtdmd.stages import cache_teacher, evaluate, prepare_prompts, report
from tests.rewards.tiny_scorers import entry
from tests.tiny import make_tiny_clip, make_tiny_teacher
from tests.workspace import make_workspace


def run(name: str) -> None:
    """Settings, plan, conformance suite, then an evaluation and a report with the scorer in both lists."""
    assert main(["params", "check"]) == 0
    assert main(["plan"]) == 0
    suite = ["-q", "-n0", "-p", "no:cacheprovider", "tests/rewards/test_every_scorer.py", "-k", name]
    assert pytest.main(suite) == 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "run"
        root.mkdir()
        teacher = make_tiny_teacher(Path(folder) / "teacher")
        clip = make_tiny_clip(Path(folder) / "clip")
        made = entry(name, Path(folder) / "scorer").model_dump(mode="json", exclude_none=True)
        world = {"name": "world_verifier", "soft_weight": 0.5}
        rewards = {"train_rtdmd": {"rewards": [made, world]}, "evaluate": {"rewards": [made, world]}}
        make_workspace(root, teacher, clip, rewards)
        for stage in (prepare_prompts, cache_teacher, evaluate, report):
            stage.run(root)
        metrics = read_json(root / "results/evaluate/metrics.json")
        scorers = read_json(root / "results/evaluate/scorers.json")
        page = (root / "results/report/index.html").read_text(encoding="utf-8")
    label = REWARDS[name].settings.label
    assert label is not None and label in page
    mean = metrics["suites"]["heldout"]["train_rtdmd"][name]["mean"]
    print(f"scored {mean:.6f} by {sorted(scorers[name]['files'])}")


if __name__ == "__main__":
    run(sys.argv[1])
