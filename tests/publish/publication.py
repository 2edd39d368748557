"""A small repository folder that was run and committed, with a results/publish that passed its gate: what
lineage, trace and upload work on. No network weights, no torch: the files only look the part."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import yaml

from rtdmd.common.files import json_text
from rtdmd.pipeline.lineage import md5_like_dvc
from rtdmd.publish.records import lineage_record, weights_metadata

TOKEN = "hf_" + "ThisTokenMustNeverBeSeen" + "0123"
REPO = "somebody/few-steps"

PIPELINE = """
stages:
  train_rtdmd:
    cmd: sh code/train.sh
    deps: [code, data/teacher.txt]
    params: [run.seed, run.device, train_rtdmd]
    outs: [results/train_rtdmd/generator.safetensors, results/train_rtdmd/resolved.json]
  evaluate:
    cmd: cp results/train_rtdmd/generator.safetensors results/evaluate/scores.csv
    deps: [results/train_rtdmd/generator.safetensors]
    params: [run.seed, run.device, evaluate.images]
    outs: [results/evaluate/scores.csv]
  report:
    cmd: cp results/evaluate/scores.csv results/report/page.html
    deps: [results/evaluate/scores.csv]
    outs: [results/report/page.html]
  publish:
    cmd: cp -r made/. results/publish/
    deps: [made, results/train_rtdmd/generator.safetensors, results/evaluate/scores.csv]
    params: [run.seed, run.device, publish.repo_id]
    outs:
      - results/publish/README.md
      - results/publish/gate.json
      - results/publish/provenance.json
      - results/publish/pytorch_lora_weights.safetensors
      - results/publish/resolved.json
      - results/publish/samples.png
      - results/publish/scheduler/scheduler_config.json
"""
PARAMS = """
run: {seed: 0, device: cpu}
model: {teacher: data/teacher.txt, revision: null}
train_rtdmd: {lr: 1e-05, epochs: 80, betas: [0.9, 0.999], rewards: [{name: clipscore, weight: 0.1}]}
evaluate: {images: 900, batch_size: 30}
publish: {repo_id: somebody/few-steps, private: true, dry_run: true}
"""
TEACHER = "a teacher\n" * 100
CARD = "---\nlicense: apache-2.0\n---\n\n# Few steps\n\nA card.\n"


def make_repository(root: Path) -> Path:
    """Fill ``root``, run its stages, commit it."""
    write_sources(root)
    run_stages(root)
    run(root, "git", "init", "-q")
    commit(root)
    return root


def write_sources(root: Path) -> None:
    """Everything that is there before a run."""
    write(root, "dvc.yaml", PIPELINE)
    write(root, "params.yaml", PARAMS)
    write(root, ".gitignore", "results/\n.dvc/\n")
    write(root, ".dvcignore", "__pycache__\n*.pyc\n.partial-*\n")
    copies = (
        "data/teacher.txt results/train_rtdmd/generator.safetensors",
        "code/settings.json results/train_rtdmd/resolved.json",
    )
    write(root, "code/train.sh", "".join(f"cp {pair}\n" for pair in copies))
    write(root, "code/settings.json", json_text(resolved("train_rtdmd")))
    write(root, "code/sub/model.py", "x = 1\n")
    write(root, "code/sub/__pycache__/model.pyc", "not content\n")
    write(root, "data/teacher.txt", TEACHER)
    make_export(root / "made")
    for stage in ("train_rtdmd", "evaluate", "report", "publish"):
        (root / "results" / stage).mkdir(parents=True)


def run_stages(root: Path) -> None:
    """Run the stages and write dvc.lock as DVC does (test_lineage.py holds this against DVC itself)."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    params, lock = yaml.safe_load((root / "params.yaml").read_text()), {}
    for name, stage in stages.items():
        run(root, "sh", "-c", stage["cmd"])
        used = {key: reduce(dict.__getitem__, key.split("."), params) for key in stage.get("params", [])}
        hashes = {
            kind: [{"path": path, "hash": "md5", "md5": md5_like_dvc(root / path)} for path in stage[kind]]
            for kind in ("deps", "outs")
        }
        lock[name] = {"cmd": stage["cmd"], **hashes, **({"params": {"params.yaml": used}} if used else {})}
    write(root, "dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": lock}, sort_keys=False))


def make_export(folder: Path, seed: int = 0, picture: str = "samples.png") -> None:
    """What stage publish would write: a card, weights (60 kB), a picture (30 kB), and the records of them."""
    record = lineage_record({name: resolved(name) for name in ("train_rtdmd", "evaluate", "publish")})
    write(folder, "README.md", CARD)
    write(folder, "pytorch_lora_weights.safetensors", weights(record, seed))
    write(folder, picture, random.Random(seed + 1).randbytes(30_000))
    write(folder, "scheduler/scheduler_config.json", json_text({"shift": 3.0, "seed": seed}))
    write(folder, "provenance.json", json_text(record))
    gated = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("gate.json", "resolved.json")
    }
    write(folder, "gate.json", json_text({"sha256": gated}))
    write(folder, "resolved.json", json_text({"stage": "publish"}))


def resolved(stage: str) -> dict[str, object]:
    """A stage's settings file, as its harness writes it."""
    if stage == "publish":
        return {"stage": stage, "params": {"publish.repo_id": REPO}, "inputs": {}, "versions": {"python": "3.11.0"}}
    inputs = {"data/teacher.txt": hashlib.sha256(TEACHER.encode()).hexdigest()}
    if stage == "evaluate":
        inputs["results/train_rtdmd/generator.safetensors"] = inputs["data/teacher.txt"]  # its train.sh copies it
    sections = {
        "train_rtdmd": {
            "lr": 1e-05,
            "epochs": 80,
            "betas": [0.9, 0.999],
            "rewards": [{"name": "clipscore", "weight": 0.1}],
        },
        "evaluate": {"images": 900, "batch_size": 30},
    }
    params = {"run.seed": 0, "run.device": "cpu", "model": {"teacher": "data/teacher.txt", "revision": None}}
    return {
        "stage": stage,
        "params": {**params, stage: sections[stage]},
        "inputs": inputs,
        "versions": {"python": "3.11.0"},
    }


def weights(record: dict[str, object], seed: int = 0, name: str = "transformer.proj.lora_A.weight") -> bytes:
    """A safetensors file of one tensor with the record in its header."""
    data = random.Random(seed).randbytes(60_000)
    tensor = {"dtype": "F32", "shape": [15_000], "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": weights_metadata(record), name: tensor}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data


def write(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def run(root: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(root: Path, message: str = "a run") -> str:
    """Commit everything; the commit's hash."""
    run(root, "git", "add", "-A")
    run(root, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", message)
    return run(root, "git", "rev-parse", "HEAD").strip()


def copy_repository(repository: Path, target: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(repository, target, symlinks=True))


def publish_again(root: Path, seed: int, picture: str = "samples.png") -> None:
    """New weights, run and committed."""
    for folder in (root / "made", root / "results" / "publish"):
        shutil.rmtree(folder)
    (root / "results" / "publish").mkdir()
    make_export(root / "made", seed, picture)
    run_stages(root)
    commit(root, f"seed {seed}")


def usual_client(patch: pytest.MonkeyPatch, pauses: list[float] | None = None, xet: bool = False) -> None:
    """The client as it is, with the token where it is usually found, over LFS or over Xet, its own waits written down
    instead of waited; the weights (60 kB) count as large."""
    patch.setattr("rtdmd.publish.upload_plan.IN_MEMORY", 50_000)
    patch.setenv("HF_TOKEN", TOKEN)
    patch.setenv("NO_PROXY", "127.0.0.1")
    patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", not xet)
    patch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY", True)
    clock = SimpleNamespace(sleep=(pauses if pauses is not None else []).append)
    patch.setattr("huggingface_hub.utils._http.time", clock)
    patch.setattr("huggingface_hub.file_download.time", clock)
