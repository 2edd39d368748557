"""Which prompt comes when: each equally often, or each tag equally often; a function of the position alone."""

from collections import Counter

import pytest
import torch

from rtdmd.backbones.protocol import Conditioning
from rtdmd.common.errors import UserError
from rtdmd.conditioning.text_cache import TextCache
from rtdmd.train.prompts import TrainingPrompts

SIZES = {"counting": 2, "colors": 5, "position": 13}
RECORDS = [{"prompt": f"{tag} {i}", "tag": tag, "metadata": None} for tag, n in SIZES.items() for i in range(n)]


def prompts(order, records=RECORDS, seed=0):
    cache = TextCache(Conditioning({"x": torch.zeros(1, 1)}), {})
    return TrainingPrompts(records, cache, seed, order)


def drawn(order, steps, size, **more):
    return [r for step in range(steps) for r in prompts(order, **more).batch(step, size, "stage")]


def test_uniform_draws_every_prompt_equally_often():
    counts = Counter(r["prompt"] for r in drawn("uniform", 15, 4))
    assert set(counts.values()) == {3} and len(counts) == 20


def test_by_tag_draws_every_tag_equally_often_and_its_prompts_alike():
    records = drawn("by_tag", 26, 3)  # 78 positions: 26 a tag
    assert Counter(r["tag"] for r in records) == dict.fromkeys(SIZES, 26)
    counts = Counter(r["prompt"] for r in records)
    assert {counts[f"counting {i}"] for i in range(2)} == {13}
    assert {counts[f"position {i}"] for i in range(13)} == {2}
    assert sorted(counts[f"colors {i}"] for i in range(5)) == [5, 5, 5, 5, 6]


@pytest.mark.parametrize("order", ["uniform", "by_tag"])
def test_the_order_depends_on_seed_and_position_only(order):
    assert drawn(order, 6, 4) == drawn(order, 12, 2)
    assert drawn(order, 6, 4) != drawn(order, 6, 4, seed=1)


def test_by_tag_refuses_a_prompt_without_a_tag():
    with pytest.raises(UserError, match=r"prompt_order: by_tag .*'untagged'"):
        drawn("by_tag", 1, 1, records=[*RECORDS, {"prompt": "untagged", "tag": None, "metadata": None}])
