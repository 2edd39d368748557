"""Stand-ins of the scorers' models: served by the Hub's names and commits, they load by the real code and score."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from rtdmd.common.errors import UserError
from rtdmd.common.files import save_tensors
from rtdmd.common.pins import UNPINNED
from rtdmd.config import Params, preset, reward_params
from rtdmd.rehearse.hub import Hub
from rtdmd.rehearse.scorers import stand_ins, writer
from rtdmd.rehearse.stand_in import StandIn
from rtdmd.rewards.golden import check_rewards
from rtdmd.rewards.registration import Source
from rtdmd.rewards.registry import NAMES, REWARDS, load_reward
from rtdmd.rewards.weights import read_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLIP_TEXTS = (
    *("config.json", "merges.txt", "preprocessor_config.json", "special_tokens_map.json", "tokenizer.json"),
    *("tokenizer_config.json", "vocab.json"),
)
QWEN_TEXTS = (
    *("chat_template.json", "config.json", "merges.txt", "model.safetensors.index.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json"),
)
FETCHED = {
    "openai/clip-vit-large-patch14": {*CLIP_TEXTS, "model.safetensors"},
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": {*CLIP_TEXTS},
    "yuvalkirstain/PickScore_v1": {
        *("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
    },
    "xswu/HPSv2": {"HPS_v2.1_compressed.pt"},
    "zai-org/ImageReward": {"ImageReward.pt", "med_config.json"},
    "google-bert/bert-base-uncased": {"config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"},
    "MizzenAI/HPSv3": {"HPSv3.safetensors"},
    "Qwen/Qwen2-VL-7B-Instruct": {*QWEN_TEXTS},
    "facebook/mask2former-swin-small-coco-instance": {
        *("config.json", "model.safetensors", "preprocessor_config.json")
    },
    "Qwen/Qwen3-VL-8B-Instruct": {
        *QWEN_TEXTS,
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    },
}
"""What is read of each published repository, to the file."""


def pinned(name: str) -> Params:
    """A preset with a commit in the place of every placeholder."""
    text = preset(name).model_dump_json().replace(UNPINNED, COMMIT)
    return Params.model_validate(json.loads(text))


@pytest.fixture(scope="module")
def made() -> list[StandIn]:
    return stand_ins(pinned("sd35m"))


@pytest.fixture(scope="module")
def root(made: list[StandIn], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the user's own files, and below it what the Hub has."""
    root = tmp_path_factory.mktemp("run")
    for one in made:
        place = root / one.repo if one.revision is None else root / "hub" / one.repo
        place.mkdir(parents=True)
        one.write(place)
    return root


@pytest.fixture(scope="module")
def hub(made: list[StandIn], root: Path) -> Iterator[Hub]:
    with pytest.MonkeyPatch.context() as patch, Hub("hf_rehearsal") as server:
        for one in made:
            if one.revision is not None:
                server.add(one.repo, root / "hub" / one.repo, one.revision, gated=one.gated)
        address = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        patch.setattr(constants, "HF_HUB_CACHE", str(root / "cache"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield server


def gone(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def whole_numbers(path: Path) -> None:
    """Quantised weights under the same names, which a cast alone makes other weights of."""
    tensors = read_weights(path)
    changed = {name: (100 * tensor).to(torch.int8) for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        save_tensors(changed, path, {"format": "pt"})
    else:
        torch.save(changed, path)


def eight_bits(path: Path) -> None:
    torch.save({name: tensor.to(torch.float8_e4m3fn) for name, tensor in read_weights(path).items()}, path)


def no_model(path: Path) -> None:
    path.write_text("{}")


COPY = "copy or download it there"
AGAIN = "it lies outside this repository: copy or download it there again, from where the folder came"
NUMBERS = "the weights are not this model's; stored as none of float16, bfloat16, float32, float64: "
DAMAGES = [
    ("clipscore", "model", "config.json", gone, "is not a CLIP model folder; fetch one with `hf download openai/"),
    ("clipscore", "model", "preprocessor_config.json", gone, f"wants its images; {COPY}"),
    ("clipscore", "model", "model.safetensors", cut, AGAIN),
    ("clipscore", "model", "model.safetensors", whole_numbers, f"{NUMBERS}logit_scale"),
    ("clipscore", "model", "tokenizer.json", no_model, "makes no tokenizer (it has no vocab in model); it lies"),
    (
        "hpsv2",
        "model",
        "HPS_v2.1_compressed.pt",
        gone,
        f"compressed.pt or HPS_v2.1.safetensors; {COPY}",
    ),
    ("hpsv2", "model", "HPS_v2.1_compressed.pt", cut, AGAIN),
    ("hpsv2", "model", "HPS_v2.1_compressed.pt", eight_bits, f"{NUMBERS}logit_scale"),
    ("hpsv2", "base", "config.json", gone, "is not a CLIP model folder; fetch one with `hf download laion/"),
    ("aesthetic", "model", "sac+logos+ava1-l14-linearMSE.pth", cut, AGAIN),
    ("aesthetic", "model", "sac+logos+ava1-l14-linearMSE.pth", whole_numbers, f"{NUMBERS}layers.0.bias"),
    ("imagereward", "model", "ImageReward.pt", cut, AGAIN),
    ("imagereward", "model", "ImageReward.pt", eight_bits, f"{NUMBERS}head.0.bias"),
    ("imagereward", "model", "med_config.json", gone, f"has no med_config.json; {COPY}"),
    ("hpsv3", "model", "HPSv3.safetensors", whole_numbers, f"{NUMBERS}body.language_model.embed_tokens.weight"),
    ("hpsv3", "base", "tokenizer.json", no_model, "makes no tokenizer (it has no vocab in model); it lies"),
    ("hpsv3", "base", "chat_template.json", gone, f"has no chat_template.json or .jinja; {COPY}"),
    ("geneval", "model", "model.safetensors", gone, f"model.safetensors is missing; {AGAIN}"),
    ("geneval2", "model", "model-00002-of-00002.safetensors", gone, f"-00002-of-00002.safetensors is missing; {AGAIN}"),
    ("geneval2", "model", "model-00002-of-00002.safetensors", cut, AGAIN),
    ("geneval2", "model", "config.json", gone, f"has no config.json; {COPY}"),
]


@pytest.mark.parametrize(("name", "source", "file", "damage", "says"), DAMAGES)
def test_one_thing_that_is_broken_is_one_line_with_its_setting(
    name: str,
    source: str,
    file: str,
    damage: Callable[[Path], None],
    says: str,
    made: list[StandIn],
    root: Path,
    tmp_path: Path,
) -> None:
    del made
    params = pinned("sd35m")
    (entry,) = (found for found in params.evaluate.rewards if found.name == name)
    own = {key: getattr(entry, key) for key in entry.sources}
    places = {key: root / ("hub" if entry.is_hub_id(key) else "") / value for key, value in own.items()}
    places[source] = Path(shutil.copytree(places[source], tmp_path / source))
    damage(places[source] / file)
    pins = {held.pin: None for held in entry.sources.values()}
    broken = entry.model_copy(update={key: str(place) for key, place in places.items()} | pins)
    with pytest.raises(UserError) as refused:
        load_reward(broken)
    said = str(refused.value)
    assert said.startswith(f"rewards: {name}: {source}: ") and str(places[source]) in said and "\n" not in said
    assert says in said


def test_what_a_repository_itself_lacks_is_not_to_be_downloaded_again(hub: Hub, root: Path, tmp_path: Path) -> None:
    """No tokenizer in it; its weights in the older form alone. And a placeholder is told before the Hub is asked."""
    folder = Path(shutil.copytree(root / "hub/yuvalkirstain/PickScore_v1", tmp_path / "pick"))
    (folder / "tokenizer.json").unlink()
    hub.add("owner/bare", folder, COMMIT)
    commit = "its repository has none at this commit: name another commit, or another repository"
    entry = reward_params(name="pickscore", model="owner/bare", revision=COMMIT)
    with pytest.raises(UserError, match=f"^rewards: pickscore: model: .* has no tokenizer.json or .*; {commit}$"):
        load_reward(entry)
    (folder / "model.safetensors").unlink()
    hub.add("owner/old", folder, COMMIT)
    with pytest.raises(UserError, match=f"^rewards: pickscore: model: .* has no model.safetensors or .*; {commit}$"):
        load_reward(entry.model_copy(update={"model": "owner/old"}))
    unpinned = {entry.name: entry for entry in preset("sd35m").train_rtdmd.rewards}
    with pytest.raises(UserError, match=r"^rewards: hpsv2: revision: still the placeholder; write the commit of xswu/"):
        load_reward(unpinned["hpsv2"])


def test_one_for_each_repository_and_commit(made: list[StandIn]) -> None:
    """CLIP ViT-L/14 serves three scorers and ViT-H/14 two; the predictor's folder is the user's."""
    assert {one.repo for one in made if one.revision is not None} == {*FETCHED}
    assert [(one.repo, one.kind, one.gated) for one in made if one.revision is None] == [
        ("models/aesthetic", "model", False)
    ]
    assert {one.revision for one in made} == {COMMIT, None}
    (shared,) = (one for one in made if one.repo == "openai/clip-vit-large-patch14")
    assert shared.departs == (
        "its weights are random and tiny: no score, second or GiB of clipscore, geneval, aesthetic is foretold"
    )


def test_every_published_scorer_is_fetched_and_passes_the_golden_check(hub: Hub, root: Path, tmp_path: Path) -> None:
    """Loaded by name and commit, tried on drawn pictures as the stages try them; and no other file was sent."""
    params = pinned("sd35m")
    entries = {entry.name: entry for entry in (*params.train_rtdmd.rewards, *params.evaluate.rewards)}
    assert set(entries) == {*NAMES} - {"world_verifier", "custom", "custom_gradient"}
    for entry in entries.values():
        reward = load_reward(entry, root=root)
        assert len(check_rewards([reward], tmp_path)) == 1  # finite, in range, other pictures other scores
    sent: dict[str, set[str]] = {}
    for fetch in hub.fetched:
        sent.setdefault(fetch.repo, set()).add(fetch.path)
    assert {repo: files for repo, files in sent.items() if repo in FETCHED} == FETCHED
    assert {*hub.fetched.values()} == {1}


def test_the_world_and_folders_elsewhere_need_none() -> None:
    assert stand_ins(preset("world")) == []
    aesthetic = {"name": "aesthetic", "model": "models/laion/", "base": "./models/clip"}
    rewards = [{"name": "clipscore", "model": "/models/clip"}, aesthetic]
    changes = {"rewards": rewards, "features_model": "./models/features"}
    found = stand_ins(preset("world", {"evaluate": changes}))
    assert [one.repo for one in found] == ["models/laion", "models/clip", "models/features"]


def test_a_repository_that_two_keys_name_serves_both(tmp_path: Path) -> None:
    """A ViT-H/14 for clipscore, whose texts hpsv2 reads: whole, and with the activation that hpsv2 needs."""
    entries = [
        {"name": "hpsv2", "model": "owner/hps", "revision": COMMIT, "base": "owner/clip", "base_revision": COMMIT},
        {"name": "clipscore", "model": "owner/clip", "revision": COMMIT},
    ]
    found = stand_ins(preset("world", {"evaluate": {"rewards": entries}}))
    for one in found:
        one.write(tmp_path / one.repo)
    folders = {"model": str(tmp_path / "owner/hps"), "base": str(tmp_path / "owner/clip")}
    assert load_reward(reward_params(name="hpsv2", **folders)).name == "hpsv2"
    assert load_reward(reward_params(name="clipscore", model=folders["base"])).name == "clipscore"


def test_a_scorer_without_one_is_told_where_it_belongs(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = REWARDS["clipscore"].settings
    monkeypatch.setattr("rtdmd.rehearse.scorers.WRITERS", {})
    says = r"^rewards: clipscore: model: rtdmd/rewards/scorers/clipscore\.py has no stand-in .* \(docs/extending\.md\)$"
    with pytest.raises(UserError, match=says):
        writer("clipscore", "model")
    monkeypatch.setattr(settings, "sources", {"model": Source("revision", stand_in=shutil.rmtree)})
    assert writer("clipscore", "model") is shutil.rmtree
