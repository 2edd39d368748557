"""What may leave, from which state, and what is told with it."""

import json
from pathlib import Path

import pytest

from rtdmd.cli import main
from rtdmd.common.errors import UserError
from rtdmd.config import preset
from rtdmd.config.render import params_text
from rtdmd.publish.upload_plan import check_weights, make_publication, plan_text, shadows
from tests.publish.publication import REPO, commit, copy_repository, publish_again, run, weights, write


@pytest.fixture
def root(run_repository: Path, tmp_path: Path) -> Path:
    return copy_repository(run_repository, tmp_path / "repository")


def test_a_clean_folder_leaves_with_commit_lineage_and_hashes(root: Path) -> None:
    publication = make_publication(root, REPO, private=True)
    record = publication.record
    assert record["git_commit"] == run(root, "git", "rev-parse", "HEAD").strip()
    assert record["changed_files"] == record["stale"] == publication.reasons == []
    assert publication.tag == f"dvc-{record['dvc_lock']['sha256'][:16]}"
    assert list(record["dvc_lock"]["stages"]) == ["train_rtdmd", "evaluate", "publish"]
    assert set(record["uploaded_from"]["hardware"]) == {"machine", "system", "processor", "cores", "accelerators"}
    assert set(publication.files) == {*record["folder"], "upload.json"} == {*record["files"], "upload.json"}
    card = publication.files["README.md"].decode()
    assert card.startswith((root / "results/publish/README.md").read_text().rstrip())
    assert record["git_commit"] in card
    assert publication.tag in card
    assert "--allow-dirty" not in card
    assert json.loads(publication.files["upload.json"]) == record
    assert publication.left_here == ()


def test_the_same_state_gives_the_same_bytes(root: Path) -> None:
    first, second = (make_publication(root, REPO, private=True) for _ in range(2))
    assert first.sha256 == second.sha256
    assert first.files["upload.json"] == second.files["upload.json"]


def test_a_changed_file_is_refused_by_name_and_the_card_says_so_when_allowed(root: Path) -> None:
    clean = make_publication(root, REPO, private=True)
    write(root, ".gitignore", "results/\n.dvc/\n# changed\n")
    with pytest.raises(UserError, match=r"not published: \.gitignore is not as in the commit; commit .* --allow-dirty"):
        make_publication(root, REPO, private=True)
    dirty = make_publication(root, REPO, private=True, allow_dirty=True)
    assert dirty.tag.startswith(f"{clean.tag}-dirty-")
    card = dirty.files["README.md"].decode()
    assert "**Published with `--allow-dirty`" in card
    assert card.endswith("- .gitignore is not as in the commit\n")
    assert dirty.record["changed_files"] == [".gitignore"]
    assert "  not clean: .gitignore is not as in the commit" in plan_text(dirty)
    write(root, ".gitignore", "results/\n.dvc/\n# changed again\n")
    assert make_publication(root, REPO, private=True, allow_dirty=True).tag != dirty.tag


def test_a_stale_stage_is_refused_with_its_first_cause(root: Path) -> None:
    write(root, "code/sub/model.py", "x = 2\n")
    commit(root)  # committed, but not run
    with pytest.raises(
        UserError, match=r"not published: train_rtdmd: code: .* recorded, .* here; run the stages again"
    ):
        make_publication(root, REPO, private=True)
    card = make_publication(root, REPO, private=True, allow_dirty=True).files["README.md"].decode()
    assert "- train_rtdmd: code: " in card


def test_code_that_git_does_not_know_counts(root: Path) -> None:
    write(root, "code/new.py", "y = 1\n")
    with pytest.raises(UserError, match="not published"):
        make_publication(root, REPO, private=True)
    found = make_publication(root, REPO, private=True, allow_dirty=True)
    assert found.record["changed_files"] == ["code/new.py"]
    write(root, "notes.txt", "no stage reads this\n")
    assert make_publication(root, REPO, private=True, allow_dirty=True).record["changed_files"] == ["code/new.py"]


def test_outside_git_there_is_no_commit(root: Path) -> None:
    (root / ".git").rename(root / "git-no-more")
    with pytest.raises(UserError, match="this folder is no Git checkout"):
        make_publication(root, REPO, private=True)
    found = make_publication(root, REPO, private=True, allow_dirty=True)
    assert found.record["git_commit"] is None
    assert "no Git commit" in found.files["README.md"].decode()


def test_only_declared_outputs_leave(root: Path) -> None:
    for name in ("optimizer.pt", "state.safetensors", "scheduler/.hidden", "training/step-10.safetensors"):
        write(root, f"results/publish/{name}", b"state")
    publication = make_publication(root, REPO, private=True)
    assert not {"optimizer.pt", "state.safetensors"} & set(publication.files)
    assert set(publication.left_here) == {
        "optimizer.pt",
        "state.safetensors",
        "scheduler/.hidden",
        "training/step-10.safetensors",
    }
    assert "stays here: optimizer.pt" in plan_text(publication)


@pytest.mark.parametrize("name", ["proj.weight.exp_avg", "optimizer.proj.weight", "exp_avg_sq.proj", "rng_state"])
def test_weights_that_hold_state_do_not_leave(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(weights({}, name="transformer.timestep_embedder.lora_A.weight"))
    check_weights(path, "x.safetensors")
    path.write_bytes(weights({}, name=name))
    with pytest.raises(UserError, match=f"x.safetensors: the tensor {name} is training state"):
        check_weights(path, "x.safetensors")


def test_kinds_of_files_are_limited(root: Path) -> None:
    text = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(text.replace("samples.png", "state.pt"))
    write(root, "results/publish/state.pt", b"pickle")
    with pytest.raises(UserError, match=r"results/publish/state\.pt: files of this kind are not uploaded"):
        make_publication(root, REPO, private=True, allow_dirty=True)


def test_no_gate_no_upload(root: Path) -> None:
    write(root, "results/publish/samples.png", b"another picture")
    with pytest.raises(UserError, match=r"results/publish/samples\.png is not what passed the gate"):
        make_publication(root, REPO, private=True, allow_dirty=True)
    text = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(text.replace("      - results/publish/gate.json\n", ""))
    with pytest.raises(UserError, match=r"no gate\.json, so no upload"):
        make_publication(root, REPO, private=True, allow_dirty=True)


def test_missing_files_and_a_missing_repository_are_named(root: Path) -> None:
    with pytest.raises(UserError, match=r"publish\.repo_id: null; set it to owner/name and run `snakemake publish`"):
        make_publication(root, None, private=True)
    (root / "results/publish/samples.png").unlink()
    with pytest.raises(UserError, match=r"results/publish/samples\.png: no such file; `snakemake publish` makes it"):
        make_publication(root, REPO, private=True, allow_dirty=True)


def test_new_weights_are_a_new_lineage(root: Path) -> None:
    first = make_publication(root, REPO, private=True)
    publish_again(root, seed=1)
    second = make_publication(root, REPO, private=True)
    assert second.tag != first.tag
    assert second.record["folder"]["README.md"] == first.record["folder"]["README.md"]


def test_the_command_shows_and_sends_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a dry run opened a connection")

    monkeypatch.setattr("socket.create_connection", never)
    monkeypatch.setattr("socket.socket.connect", never)
    monkeypatch.chdir(root)
    set_repo(root, REPO)
    assert main(["upload"]) == 2  # the parameters are others than those that were run
    assert capsys.readouterr().err.startswith("rtdmd: not published: train_rtdmd: params.yaml ")
    assert main(["upload", "--allow-dirty"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{REPO} (private), tag dvc-")
    assert "pytorch_lora_weights.safetensors" in out
    assert out.endswith("nothing was sent (publish.dry_run: true); `rtdmd upload --yes` sends it\n")
    set_repo(root, "somebody/else")
    assert main(["upload", "--allow-dirty"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"rtdmd: publish.repo_id: somebody/else, but the card was written for {REPO}; `snakemake")
    set_repo(root, None)
    assert main(["upload"]) == 2
    assert capsys.readouterr().err.startswith("rtdmd: publish.repo_id: null")


def set_repo(root: Path, repo_id: str | None) -> None:
    write(root, "params.yaml", params_text(preset("smoke", {"publish": {"repo_id": repo_id}}), "a test"))


PUBLISHED = ("README.md", "pytorch_lora_weights.safetensors", "scheduler/scheduler_config.json")
MERGED = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    "path",
    [
        f"{MERGED}.index.json",
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
        "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
        "transformer/diffusion_pytorch_model.bin",
        "transformer/diffusion_pytorch_model.bin.index.json",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/flax_model.msgpack",
        "transformer/config.json",
        "pytorch_lora_weights.bin",
        "adapter_model.safetensors",
        "adapter_config.json",
        "model.ckpt",
        MERGED,
    ],
)
def test_weights_and_what_describes_them(path: str) -> None:
    assert shadows([*PUBLISHED, path], PUBLISHED) == [path]


@pytest.mark.parametrize(
    "path",
    [
        ".gitattributes",
        "LICENSE.md",
        "model_index.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors.index.json",
        "old/transformer/diffusion_pytorch_model.safetensors",
        "tokenizer/vocab.json",
        "examples/picture.png",
    ],
)
def test_what_nothing_loads_for_them_stays(path: str) -> None:
    assert shadows([*PUBLISHED, path], PUBLISHED) == []


def test_the_published_files_themselves_stay() -> None:
    published = (*PUBLISHED, MERGED, "transformer/config.json")
    assert shadows(published, published) == []
