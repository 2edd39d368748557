"""Named draws: which of a step's samples are a process's own, and that a sample's numbers are its own everywhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rtdmd.common.errors import UserError
from rtdmd.common.rng import key_seed
from rtdmd.config import preset
from rtdmd.train.losses import Draws, require_renoise_time, teacher_guidance


def of_process(first: int, count: int) -> Draws:
    return Draws(3, "stage", 7, tuple(range(first, first + count)), (1, 2, 2), torch.device("cpu"))


def test_two_processes_share_out_what_is_chosen_of_all_samples() -> None:
    chosen = [9, 2, 5, 0, 6]
    one, two = of_process(0, 5), of_process(5, 5)
    (rows, own), (others, theirs) = one.subset(chosen), two.subset(chosen)
    assert (rows, own.samples) == ([2, 0], (2, 0)) and (others, theirs.samples) == ([4, 0, 1], (9, 5, 6))
    whole = dict(zip(range(10), of_process(0, 10).normal("x"), strict=True))
    for part in (own, theirs):
        for sample, noise in zip(part.samples, part.normal("x"), strict=True):
            assert torch.equal(noise, whole[sample])


def test_another_stream_has_other_numbers_for_the_same_samples() -> None:
    _, own = of_process(0, 4).subset([3, 1], "another")
    assert own.samples == (3, 1) and own.stream == "another"
    assert not torch.equal(own.normal("x"), replace(of_process(0, 4), samples=(3, 1)).normal("x"))
    assert of_process(0, 4).subset([]) == ([], of_process(0, 0))


def test_uniform_numbers_have_their_law() -> None:
    values = of_process(0, 4000).uniform("u")
    assert values.min() >= 0 and values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=0.019)  # 4 standard errors
    assert values[17].item() == pytest.approx(key_seed(3, "stage", 7, 17, "u") / 2**63, abs=1e-7)


def test_the_teachers_guidance_is_the_models_or_uniform_on_its_range() -> None:
    params = preset("smoke", {"train_acdmd": {"guidance_range": [1.5, 4.5]}})
    assert teacher_guidance(params, params.train_rtdmd, of_process(0, 5)) == params.model.guidance == 2.0
    found = [teacher_guidance(params, params.train_acdmd, replace(of_process(0, 5), step=step)) for step in range(400)]
    assert 1.5 <= min(found) < 1.6 and 4.4 < max(found) < 4.5 and sum(found) / 400 == pytest.approx(3, abs=0.18)
    assert teacher_guidance(params, params.train_acdmd, replace(of_process(5, 5), step=3)) == found[3]


def test_clamped_times_are_refused_where_a_level_leaves_no_room_for_them() -> None:
    levels = torch.tensor([0.985, 0.9, 0.75, 0.0])
    require_renoise_time("train_acdmd", "uniform", levels)
    require_renoise_time("train_acdmd", "clamped", levels[1:])
    told = r"^train_acdmd\.renoise_time: clamped, to 0\.98, but the sampler's levels reach 0\.985, .*\(with"
    with pytest.raises(UserError, match=told):
        require_renoise_time("train_acdmd", "clamped", levels)
