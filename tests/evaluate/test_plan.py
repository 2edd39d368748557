"""Which images are judged."""

from collections import Counter

from rtdmd.evaluate.plan import Prompt, grid_prompts, plan_images, read_prompts
from rtdmd.files import write_jsonl

PROMPTS = [Prompt(i, f"p{i}", tag, None) for i, tag in enumerate(["a", "b", "b", "b", "c", "c"])]


def test_images_go_round_the_prompts_of_each_tag():
    items = plan_images(PROMPTS, 7)
    assert Counter(item.prompt.tag for item in items) == {"a": 7, "b": 7, "c": 7}
    assert [(i.prompt.id, i.index) for i in items if i.prompt.tag == "b"] == [
        (1, 0),
        (2, 0),
        (3, 0),
        (1, 1),
        (2, 1),
        (3, 1),
        (1, 2),
    ]
    assert len({(i.prompt.id, i.index) for i in items}) == 21


def test_more_images_only_add_to_the_plan():
    assert set(plan_images(PROMPTS, 5)) < set(plan_images(PROMPTS, 9))


def test_grid_prompts_spread_over_tags_and_keep_their_order():
    items = plan_images(PROMPTS, 7)
    assert [p.id for p in grid_prompts(items, 3)] == [0, 1, 4]
    assert [p.id for p in grid_prompts(items, 5)] == [0, 1, 2, 4, 5]
    assert [p.id for p in grid_prompts(items, 99)] == [0, 1, 2, 3, 4, 5]


def test_prompts_without_tag_form_one_group(tmp_path):
    write_jsonl(tmp_path / "eval.jsonl", [{"id": 4, "prompt": "x", "tag": None, "metadata": None}])
    (prompt,) = read_prompts(tmp_path / "eval.jsonl")
    assert prompt == Prompt(4, "x", "all", None)
    assert [i.index for i in plan_images([prompt], 3)] == [0, 1, 2]
