"""The parts of the report on what it was made of."""

from __future__ import annotations

import re

from rtdmd.report.sections import settings


def test_settings_of_single_keys_stand_in_their_section() -> None:
    """Stages declare keys such as run.seed, and whole sections; each section is one part, as params.yaml has it."""
    resolved = {
        "train_acdmd": {"params": {"run.seed": 7, "run.device": "cpu", "model": {"eta": 0.9}}},
        "evaluate": {"params": {"run.seed": 7, "run.threads": 2, "report.grid_prompts": 4}},
    }
    found = settings(resolved).body
    assert re.findall(r"<summary>(.*?)</summary>", found) == ["run", "model", "report"]
    assert re.findall(r"<pre>(.*?)</pre>", found, re.DOTALL) == [
        "seed: 7\ndevice: cpu\nthreads: 2",
        "eta: 0.9",
        "grid_prompts: 4",
    ]
