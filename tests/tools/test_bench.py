"""`rtdmd bench` counts the passes that the algorithm needs, and beside them those that an update makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plan.test_counts import CPU, PROMPTS, small
from tools import bench

TWO = {"prompts_per_epoch": 2, "group_size": 2, "micro_batch": 3, "fake_batch_size": 4, "last_step_batch_size": 4}


@pytest.mark.parametrize(("scaling", "backward"), [("none", 1 + 1 + 3), ("unit_norm", 1 + 2 + 3)])
def test_an_epoch_makes_the_passes_that_it_needs(
    tiny_teacher: Path, tiny_clip: Path, scaling: str, backward: int
) -> None:
    """An image: two steps of the rollout, a trained one, the last one, the fake score, the guided teacher, and three
    of the fake score's update. Backward: the trained step, the last one for all terms or for each, and those three."""
    own: dict[str, Any] = {"gradient_scaling": scaling, "share_initial": False, "share_noise": False} | TWO
    own["consistency"] = {"weight": 0.01, "estimator": "two_sample"}
    params = small(tiny_teacher, tiny_clip, {"model": {"guidance": 3.0}, "train_rtdmd": own})
    need = bench.needed(params, "train_rtdmd")
    update, passes = bench._second(params, Path("/"), CPU, PROMPTS)
    times = bench._timed(update, passes, 1, need)
    assert times.needed == times.made == (4 * (2 + 1 + 1 + 1 + 2 + 3), 4 * backward)
    assert min(*times.update, *times.passes) > 0 and times.updates == 1


def test_a_backward_pass_too_many_is_made_but_not_needed() -> None:
    """Two gradients reach one output: two passes are made, and one is run again."""
    weight = torch.nn.Parameter(torch.ones(2))
    passes, again = bench.Passes(), list[int]()

    def run() -> torch.Tensor:
        out = torch.ones(3, 2) * weight
        out.register_hook(lambda gradient: again.append(1))
        return out

    out = passes.note(run(), run, [weight], 6, 3)
    for _ in range(2):
        torch.autograd.grad(out.sum(), weight, retain_graph=True)
    assert passes.made() == (6, 6)
    again.clear()
    passes.again()
    assert len(again) == 1
