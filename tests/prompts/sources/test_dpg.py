"""DPG-Bench's table: a row per question becomes a prompt with its questions."""

from __future__ import annotations

from pathlib import Path

from rtdmd.prompts.records import ErrorPolicy
from rtdmd.prompts.registration import Reading
from rtdmd.prompts.registry import SOURCES

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)
ROWS = [
    '1,"A cup, a fork.",cup,1,0,entity,whole,entity - whole (cup),Is there a cup?',
    '1,"A cup, a fork.",cup,2,"1,0",attribute,color,"attribute - color (cup, red)",Is the cup red?',
    "2,A dog.,dog,1,0,entity,whole,entity - whole (dog),Is there a dog?",
]


def test_rows_about_one_prompt_are_one(tmp_path: Path) -> None:
    path = tmp_path / "dpg_bench.csv"
    path.write_text("\n".join([HEADER, *ROWS]))
    source = SOURCES["dpg"]
    params = source.settings(name="dpg", path="data/prompts/dpg_bench.csv")  # type: ignore[call-arg]
    prompts, facts = source.read(params, Reading("prepare_prompts.sets.dpg[0]", lambda _: path, 0, 99, ErrorPolicy()))
    assert [prompt.prompt for prompt in prompts] == ["A cup, a fork.", "A dog."]
    first = prompts[0].metadata or {}
    assert (first["item_id"], first["keywords"], first["prompt"]) == ("1", "cup", "A cup, a fork.")
    assert [question["dependency"] for question in first["questions"]] == ["0", "1,0"]
    assert first["questions"][1]["question_natural_language"] == "Is the cup red?"
    assert len((prompts[1].metadata or {})["questions"]) == 1
    assert len(facts["sha256"]) == 64
