"""Speed and gradients of every scorer on its tiny model, as the Markdown table of docs/evidence/scorers.md.

    OMP_NUM_THREADS=1 python -m tests.rewards.measure

Images a second of processor time (neighbours do not count): eight pairs of the golden case in one batch, best of four
runs. Gradient: relative error of the derivative along a random direction against central differences, for two steps.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from rtdmd.rewards.golden_cases import case_of
from rtdmd.rewards.protocol import Reward
from rtdmd.rewards.registry import NAMES, load_reward
from tests.rewards.reward_checks import derivatives
from tests.rewards.tiny_scorers import entry

STEPS = (2e-3, 1e-3)


@torch.no_grad()
def images_a_second(reward: Reward) -> float:
    images, prompts, metadata = case_of(reward.name).crossed()
    times = []
    for _ in range(5):  # the first one also embeds the texts
        start = time.process_time()
        reward.score(images, prompts, metadata)
        times.append(time.process_time() - start)
    return len(images) / min(times[1:])


def gradient_errors(reward: Reward) -> list[float]:
    found = [derivatives(reward, 50, step) for step in STEPS]
    return [abs(slope - difference) / abs(difference) for slope, difference in found]


def main() -> None:
    torch.set_num_threads(1)
    print("| scorer | images/s | pictures | gradient |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            reward = load_reward(entry(name, Path(folder) / name))
            height, width = case_of(name).pictures.shape[-2:]
            errors = ", ".join(f"{error:.0e}" for error in gradient_errors(reward)) if reward.differentiable else ""
            print(f"| {name} | {images_a_second(reward):.0f} | {width}x{height} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
