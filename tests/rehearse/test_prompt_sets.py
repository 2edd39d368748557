"""Stand-ins of prompt files: read by the sources that they are for, in every form, with what the rewards need."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rtdmd.common.errors import UserError
from rtdmd.config import Params, preset
from rtdmd.config.prompt_needs import check_prompts, scored_sets
from rtdmd.prompts.records import ErrorPolicy, Source, make_sets
from rtdmd.prompts.registration import FileParams, Reading
from rtdmd.prompts.registry import SOURCES
from rtdmd.rehearse.prompt_sets import PROMPTS, File, file_text, stand_ins
from rtdmd.rewards.geneval_rules import TAGS
from tests.rehearse.test_scorers import COMMIT, pinned

FILES = [name for name, source in SOURCES.items() if issubclass(source.settings, FileParams)]

LISTS = ("geneval", "geneval2")  # their records hold lists, which no table has
FORMS = [(name, suffix) for name in FILES for suffix in (".json", ".jsonl")]
FORMS += [(name, suffix) for name in FILES if name not in LISTS for suffix in (".csv", ".tsv")]


def read(root: Path, source: FileParams) -> list[Source]:
    """The prompts of a local file, as prepare_prompts reads them."""
    reading = Reading("prepare_prompts.sets.x[0]", lambda path: root / path, 0, 2000, ErrorPolicy())
    return SOURCES[source.name].read(source, reading)[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a preset names."""
    root = tmp_path_factory.mktemp("files")
    for one in stand_ins(pinned("sd35m")):
        assert (one.kind, one.revision, one.gated) == ("file", None, False)
        one.write(root / one.repo)
    return root


def test_a_presets_files_make_its_sets(root: Path) -> None:
    """All of the six tags where GenEval is asked, one repeated prompt a file, and training apart from evaluation even
    where nothing may be dropped."""
    params = pinned("sd35m")
    sets = {
        name: [read(root, source) for source in params.prepare_prompts.sets[name] if isinstance(source, FileParams)]
        for name in (*params.training_sets, *params.evaluation_sets)
    }
    trained = {name: sets[name] for name in params.training_sets}
    judged = {name: sets[name] for name in params.evaluation_sets}
    made = make_sets(trained, judged, {name: ErrorPolicy() for name in sets})
    assert {name: (len(one.prompts), one.duplicates) for name, one in made.items()} == dict.fromkeys(
        ["pickscore", "geneval_train", "drawbench", "hpsv3", "geneval", "geneval2", "ocr"], (PROMPTS, [1])
    )
    for name in ("geneval_train", "geneval"):
        assert Counter(one.tag for one in made[name].prompts) == dict.fromkeys(TAGS, PROMPTS // 6)
    for _, name, rewards in scored_sets(params):
        prompts = made[name].prompts
        for reward in rewards:
            reward.require_scorable([one.prompt for one in prompts], [one.metadata for one in prompts])
    everything = [one.prompt for each in made.values() for one in each.prompts]
    assert len(set(everything)) == len(everything) == 7 * PROMPTS
    assert not any(prompt.startswith("a photo of") for prompt in everything)  # real files and `generated` have these
    assert max(map(len, everything)) > 400 and any("“naïve” art ✨" in prompt for prompt in everything)


@pytest.mark.parametrize(("name", "suffix"), FORMS)
def test_every_source_reads_its_own_form(name: str, suffix: str, tmp_path: Path) -> None:
    include = [{"class": "dog", "count": 2, "color": "red"}]
    record = {"tag": "colors", "include": include, "prompt": "x"}
    sources = [Source(f"an image of {number} dogs", "colors", record, "here") for number in range(3)]
    path = f"data/prompts/x{suffix}"
    (tmp_path / "data/prompts").mkdir(parents=True)
    (tmp_path / path).write_text(file_text(File(path, True, (name,), ()), sources), encoding="utf-8")
    found = read(tmp_path, SOURCES[name].settings.model_validate({"name": name, "path": path}))
    kept = dict.fromkeys(one.prompt for one in found)
    sign = ', and a sign that says "dog"' if name == "ocr" else ""
    assert list(kept) == [f"{one.prompt}{sign}" for one in sources]


def changed(**sets: Any) -> Params:
    """The world with other evaluation prompts, which ocr and geneval score."""
    rewards = [{"name": "ocr"}, SCORER]
    suites = [{"name": name, "prompts": name, "rewards": ["ocr", "geneval"], "images_per_prompt": 1} for name in sets]
    world = preset("world").prepare_prompts.sets
    kept = {name: [source.model_dump() for source in found] for name, found in world.items()}
    changes = {
        "prepare_prompts": {"sets": kept | sets},
        "evaluate": {"suites": suites, "rewards": rewards, "features_model": None},
    }
    return preset("world", changes)


SCORER = {
    "name": "geneval",
    "model": "owner/detector",
    "revision": COMMIT,
    "colour_model": "owner/clip",
    "colour_revision": COMMIT,
    "soft_weight": 1.0,
}


def test_any_file_has_what_the_rewards_of_its_set_need(tmp_path: Path) -> None:
    """`prompts` carries nothing of its own: GenEval's records and OCR's texts are those of the sources that have
    them. A data set of the Hub comes with all its files."""
    hub = {"name": "prompts", "repo": "owner/sets", "revision": COMMIT}
    local = {"name": "prompts", "path": "data/prompts/own.json"}
    params = changed(one=[hub | {"path": "a/test.jsonl"}, hub | {"path": "b.jsonl"}], two=[local])
    check_prompts(params)
    own, shared = stand_ins(params)
    assert (own.repo, own.kind, own.revision) == ("data/prompts/own.json", "file", None)
    assert (shared.repo, shared.kind, shared.revision) == ("owner/sets", "dataset", COMMIT)
    own.write(tmp_path / own.repo)
    shared.write(tmp_path / "data/prompts")
    assert sorted(path.name for path in (tmp_path / "data/prompts").rglob("*.json*")) == [
        "b.jsonl",
        "own.json",
        "test.jsonl",
    ]
    for name in ("own.json", "b.jsonl", "a/test.jsonl"):
        source = SOURCES["prompts"].settings.model_validate({"name": "prompts", "path": f"data/prompts/{name}"})
        found = read(tmp_path, source)
        for reward in params.evaluate.rewards:
            reward.require_scorable([one.prompt for one in found], [one.metadata for one in found])
        assert {one.tag for one in found} == {*TAGS}
        assert all(one.prompt.count('"') == 2 for one in found)


def test_of_the_world_the_captions_of_the_split(tmp_path: Path) -> None:
    sets = {"heldout": [{"name": "prompts", "path": "data/prompts/own.jsonl"}]}
    world = preset("world").prepare_prompts.sets["train"]
    sets["train"] = [source.model_dump() for source in world]
    params = preset("world", {"prepare_prompts": {"sets": sets}})
    (one,) = stand_ins(params)
    one.write(tmp_path / one.repo)
    source = SOURCES["prompts"].settings.model_validate({"name": "prompts", "path": one.repo})
    found = read(tmp_path, source)
    assert len(found) == 39 and {*(found[0].metadata or {})} >= {"tag", "include"}  # 38 held out, the first one twice


def test_what_no_stage_names_needs_no_file() -> None:
    assert stand_ins(preset("world")) == []


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "geneval",
            '{"prompt": "a dog"}\n',
            r"x\.jsonl:1: .*the prompt 'a dog' has metadata tag: None; allowed: sin",
        ),
        ("geneval2", '{"prompt": "a dog"}\n', r"x\.jsonl:1: the prompt .a dog. needs a GenEval 2 record"),
        ("ocr", '{"prompt": "a dog"}\n', r"x\.jsonl:1: .*the prompt 'a dog' has no text in double quotes"),
        ("prompts", "", r"x\.jsonl: there is no prompt in it$"),
        ("prompts", "\n \n", r"x\.jsonl: there is no prompt in it$"),
    ],
)
def test_a_file_that_lacks_something_is_told_by_its_line(name: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    settings = SOURCES[name].settings.model_construct(name=name, path="x.jsonl", repo=None, revision=None)
    with pytest.raises(UserError, match=says) as refused:
        read(tmp_path, settings)  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (
            SCORER,
            r"^reward geneval needs metadata, but the prompt 'a cat' has none; see prepare_prompts in params\.yaml$",
        ),
        ({"name": "ocr"}, r"^reward ocr: the prompt 'a cat' has no text in double quotes and no metadata 'target'"),
    ],
)
def test_a_prompt_without_what_a_reward_needs_is_told_before_anything_is_sampled(
    reward: dict[str, Any], says: str
) -> None:
    """One of many, in a file that could have had it: the stages ask before their first image."""
    entry = changed(x=[{"name": "prompts", "path": "data/prompts/x.jsonl"}]).evaluate.rewards
    (one,) = (found for found in entry if found.name == reward["name"])
    good = {"target": "cat", "include": []}
    one.require_scorable(["a dog", "a cat"], [good, good])
    with pytest.raises(UserError, match=says):
        one.require_scorable(["a dog", "a cat"], [good, None])


def test_records_are_json_as_the_public_code_has_them() -> None:
    """GenEval 2's list of questions with a skill for each, in the file's own order."""
    record = {"tag": "counting", "include": [{"class": "dog", "count": 3, "color": "red"}]}
    text = file_text(File("x.jsonl", False, ("geneval2",), ("geneval2",)), [Source("three dogs", None, record, "")])
    row = json.loads(text.splitlines()[0])
    assert row == {
        "prompt": "three dogs",
        "atom_count": 3,
        "vqa_list": [
            ["Is there a dog in the image?", "Yes"],
            ["How many times is a dog in the image?", "three"],
            ["Is the dog red?", "Yes"],
        ],
        "skills": ["object", "count", "attribute"],
    }
