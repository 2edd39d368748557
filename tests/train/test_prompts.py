"""Which prompt comes when: each equally often, or each tag equally often; a function of the position alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.backbones.protocol import Conditioning
from rtdmd.common.errors import UserError
from rtdmd.common.files import read_json
from rtdmd.conditioning.text_cache import TextCache
from rtdmd.pipeline.stage import open_stage
from rtdmd.stages import cache_teacher, prepare_prompts
from rtdmd.train.prompts import TrainingPrompts
from tests.workspace import set_params

SIZES = {"counting": 2, "colors": 5, "position": 13}
RECORDS = [{"prompt": f"{tag} {i}", "tag": tag, "metadata": None} for tag, n in SIZES.items() for i in range(n)]


def prompts(order, records=RECORDS, seed=0, shares=None):
    cache = TextCache(Conditioning({"x": torch.zeros(1, 1)}), {})
    return TrainingPrompts(records, cache, seed, order, shares or {})


def drawn(order, steps, size, **more):
    return [r for step in range(steps) for r in prompts(order, **more).batch(step, size, "stage")]


def test_uniform_draws_every_prompt_equally_often():
    counts = Counter(r["prompt"] for r in drawn("uniform", 15, 4))
    assert set(counts.values()) == {3} and len(counts) == 20


def test_as_listed_draws_every_line_of_the_sources_equally_often():
    records = [{"prompt": name, "times": times} for name, times in (("one", 1), ("three", 3), ("two", 2))]
    counts = Counter(r["prompt"] for r in drawn("as_listed", 12, 4, records=records))  # 48 positions: 8 a line
    assert counts == {"one": 8, "three": 24, "two": 16}
    once = [{**record, "times": 1} for record in RECORDS]
    assert drawn("as_listed", 6, 4, records=once) == drawn("uniform", 6, 4, records=once)


def test_by_tag_draws_every_tag_equally_often_and_its_prompts_alike():
    records = drawn("by_tag", 26, 3)  # 78 positions: 26 a tag
    assert Counter(r["tag"] for r in records) == dict.fromkeys(SIZES, 26)
    counts = Counter(r["prompt"] for r in records)
    assert {counts[f"counting {i}"] for i in range(2)} == {13}
    assert {counts[f"position {i}"] for i in range(13)} == {2}
    assert sorted(counts[f"colors {i}"] for i in range(5)) == [5, 5, 5, 5, 6]


def test_a_tag_comes_as_often_as_its_share():
    shares = {"counting": 3, "colors": 0}
    records = drawn("by_tag", 13, 4, shares=shares)  # 13 rounds of three counting prompts and one of position
    assert Counter(r["tag"] for r in records) == {"counting": 39, "position": 13}
    for first in range(0, 52, 4):
        assert Counter(r["tag"] for r in records[first : first + 4]) == {"counting": 3, "position": 1}
    counts = Counter(r["prompt"] for r in records)
    assert sorted(counts[f"counting {i}"] for i in range(2)) == [19, 20]
    assert {counts[f"position {i}"] for i in range(13)} == {1}
    assert drawn("by_tag", 6, 4, shares={"counting": 1}) == drawn("by_tag", 6, 4)


def test_a_share_of_no_prompts_tag_is_refused():
    with pytest.raises(UserError, match=r"tag_shares: no training prompt has the tag sizes; allowed: counting, colors"):
        drawn("by_tag", 1, 1, shares={"sizes": 2})
    with pytest.raises(UserError, match=r"tag_shares: 0 for every tag .* 1 for one of counting, colors, position"):
        drawn("by_tag", 1, 1, shares=dict.fromkeys(SIZES, 0))


@pytest.mark.parametrize("order", ["uniform", "by_tag"])
def test_the_order_depends_on_seed_and_position_only(order):
    assert drawn(order, 6, 4) == drawn(order, 12, 2)
    assert drawn(order, 6, 4) != drawn(order, 6, 4, seed=1)


def test_by_tag_refuses_a_prompt_without_a_tag():
    with pytest.raises(UserError, match=r"prompt_order: by_tag .*'untagged'"):
        drawn("by_tag", 1, 1, records=[*RECORDS, {"prompt": "untagged", "tag": None, "metadata": None}])


def opened(root: Path, name: str) -> TrainingPrompts:
    """What a training stage opens."""
    with pytest.raises(InterruptedError), open_stage(name, root) as stage:
        found = TrainingPrompts.open(stage, torch.device("cpu"), getattr(stage.params, name))
        raise InterruptedError  # before the harness asks for outputs
    return found


def test_each_stage_reads_its_own_set_and_all_sets_are_in_one_cache(root: Path) -> None:
    """Two sets of training prompts that share one, and two of evaluation prompts, of which one is not used."""
    files = {"one": ["a red circle", "a blue square"], "two": ["a green star", "a red circle"]}
    for name, texts in files.items():
        (root / "data/prompts" / f"{name}.txt").write_text("\n".join(texts))
    sets: dict[str, Any] = {name: [{"name": "prompts", "path": f"data/prompts/{name}.txt"}] for name in files}
    clipscore = {"name": "clipscore", "model": "data/world/clip", "weight": 1.0}
    changes = {
        "prepare_prompts": {"sets": sets | {"unused": [{"name": "prompts", "path": "data/prompts/absent.txt"}]}},
        "train_acdmd": {"prompts": "one"},
        "train_rtdmd": {"prompts": "two", "prompt_order": "uniform", "rewards": [clipscore]},
    }
    set_params(root, changes)
    prepare_prompts.run(root)
    cache_teacher.run(root)
    rows = read_json(root / "results/cache_teacher/index.json")["rows"]
    assert list(rows)[:1] == [""] and len(rows) == 1 + 3 + 38  # "a red circle" once
    acdmd, rtdmd = opened(root, "train_acdmd"), opened(root, "train_rtdmd")
    assert [(r["id"], r["prompt"], r["set"]) for r in acdmd.records] == [
        (0, "a red circle", "one"),
        (1, "a blue square", "one"),
    ]
    assert [(r["id"], r["prompt"]) for r in rtdmd.records] == [(2, "a green star"), (3, "a red circle")]
    first, last = acdmd.conditioning(acdmd.records), rtdmd.conditioning(rtdmd.records)
    for key, tensor in first.tensors.items():
        assert torch.equal(tensor[0], last.tensors[key][1])
    set_params(root, changes | {"train_acdmd": {"prompts": "train"}})
    with pytest.raises(
        UserError, match=r"train\.jsonl: no prompt of the set train; `rtdmd prepare_prompts` makes it anew"
    ):
        opened(root, "train_acdmd")


def test_a_stage_says_before_it_loads_a_model_which_share_no_prompt_has(root: Path) -> None:
    (root / "data/prompts/tagged.jsonl").write_text('{"prompt": "two stars", "tag": "counting"}\n')
    own = {"prompts": "own", "prompt_order": "by_tag", "tag_shares": {"colours": 2}}
    set_params(
        root,
        {
            "prepare_prompts": {"sets": {"own": [{"name": "prompts", "path": "data/prompts/tagged.jsonl"}]}},
            "train_acdmd": own,
        },
    )
    prepare_prompts.run(root)
    cache_teacher.run(root)
    with pytest.raises(
        UserError, match=r"^train_acdmd\.tag_shares: no training prompt has the tag colours; allowed: c"
    ):
        opened(root, "train_acdmd")
