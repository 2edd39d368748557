"""Which images are judged."""

from collections import Counter

from rtdmd.config import SuiteParams
from rtdmd.evaluate.plan import grid_prompts, plan_images, plan_suite
from rtdmd.prompts.records import Prompt

PROMPTS = [Prompt(i, f"p{i}", tag, None) for i, tag in enumerate(["a", "b", "b", "b", "c", "c"])]


def test_images_go_round_the_prompts_of_each_tag():
    items = plan_images(PROMPTS, 7)
    assert Counter(item.tag for item in items) == {"a": 7, "b": 7, "c": 7}
    assert [(i.prompt.id, i.index) for i in items if i.tag == "b"] == [
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


def test_prompts_without_tag_form_one_group():
    prompts = [Prompt(4, "x"), Prompt(5, "y")]
    items = plan_images(prompts, 3)
    assert [(i.key, i.tag) for i in items] == [((4, 0), "all"), ((5, 0), "all"), ((4, 1), "all")]


def test_a_suite_takes_so_many_images_of_each_prompt_and_so_many_prompts_of_all_tags():
    suite = SuiteParams(name="s", prompts="s", images_per_prompt=2, max_prompts=4)
    assert [item.key for item in plan_suite(suite, PROMPTS)] == [
        *((0, 0), (0, 1)),
        *((1, 0), (1, 1), (2, 0), (2, 1)),
        *((4, 0), (4, 1)),
    ]
    whole = plan_suite(suite.model_copy(update={"max_prompts": None}), PROMPTS)
    assert [item.key for item in whole] == [(number, index) for number in range(6) for index in range(2)]
    by_tag = SuiteParams(name="s", prompts="s", images_per_tag=7)
    assert plan_suite(by_tag, PROMPTS) == plan_images(PROMPTS, 7)
