"""Named draws: which of a step's samples are a process's own, and that a sample's numbers are its own everywhere."""

from __future__ import annotations

import torch

from rtdmd.train.losses import Draws


def of_process(first: int, count: int) -> Draws:
    return Draws(3, "stage", 7, tuple(range(first, first + count)), (1, 2, 2), torch.device("cpu"))


def test_two_processes_share_out_what_is_chosen_of_all_samples() -> None:
    chosen = [9, 2, 5, 0, 6]
    one, two = of_process(0, 5), of_process(5, 5)
    (rows, own), (others, theirs) = one.among(chosen), two.among(chosen)
    assert (rows, own.samples) == ([2, 0], (2, 0)) and (others, theirs.samples) == ([4, 0, 1], (9, 5, 6))
    whole = dict(zip(range(10), of_process(0, 10).normal("x"), strict=True))
    for part in (own, theirs):
        for sample, noise in zip(part.samples, part.normal("x"), strict=True):
            assert torch.equal(noise, whole[sample])


def test_another_stream_has_other_numbers_for_the_same_samples() -> None:
    _, own = of_process(0, 4).among([3, 1], "another")
    assert own.samples == (3, 1) and own.stream == "another"
    assert not torch.equal(own.normal("x"), of_process(0, 4).of([3, 1]).normal("x"))
    assert of_process(0, 4).among([]) == ([], of_process(0, 0))
