"""Every reader of files that others may have changed: a mutated file is read, or refused in one line with its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rtdmd.commands.methods import own_figures
from rtdmd.commands.plan import changes_of
from rtdmd.common.files import load_tensors, read_json, read_jsonl, save_tensors
from rtdmd.common.parsing import read_table
from rtdmd.evaluate.tables import read_scores
from rtdmd.pipeline.dvc_yaml import read_pipeline
from rtdmd.pipeline.lineage import read_lock
from rtdmd.prompts.files import file_sources
from rtdmd.prompts.records import ErrorPolicy, read_prompts
from rtdmd.publish.records import Provenance, read_record_file, record_of_weights, steps_of_record
from rtdmd.report.over_time import read_curves
from rtdmd.study.plan import load_plan
from tests.mutations import mutations, outcome
from tests.workspace import REPOSITORY

LOCK = """schema: '2.0'
stages:
  evaluate:
    cmd: python -m rtdmd evaluate
    deps:
    - path: results/a/b
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 3
    params:
      params.yaml:
        run:
          seed: 0
        evaluate.x: 3e-05
    outs:
    - path: results/evaluate/metrics.json
      hash: md5
      md5: 0123456789abcdef0123456789abcdef
      size: 30
"""
SCORES = "suite,model,prompt_id,tag,index,strict\na,teacher,0,counting,0,1.0\na,teacher,1,colors,1,0.5\n"
PROMPTS = "".join(
    json.dumps({"id": i, "prompt": f"a dog {i}", "tag": None, "metadata": {"n": 1.5}, "set": "a", "times": 1}) + "\n"
    for i in range(3)
)
RECORD = json.dumps(
    {
        "inputs": {"evaluate": {"results/train/x": "ab" * 32}},
        "settings": {"run.seed": 1},
        "versions": {"evaluate": {"torch": "2"}},
    }
)
TABLE = 'Prompts,Category\n"a dog, a cat",Colors\n"two\nlines",\na "red" cow,\n'

Read = Callable[[Path], Any]
READERS: dict[str, tuple[str, str, Read]] = {
    "prompts.txt": (
        "p.txt",
        "a dog\na cat\n\u00e9t\u00e9\n",
        lambda path: file_sources(path, str(path), ErrorPolicy(), 99),
    ),
    "prompts.jsonl": ("p.jsonl", PROMPTS, lambda path: file_sources(path, str(path), ErrorPolicy(), 99)),
    "prompts.json": ("p.json", '["a", {"prompt": "b"}]', lambda path: file_sources(path, str(path), ErrorPolicy(), 99)),
    "prompts.csv": ("p.csv", TABLE, lambda path: file_sources(path, str(path), ErrorPolicy(), 99)),
    "prompts.tsv": ("p.tsv", 'Prompt\tNote\n"a" b\t1\n', lambda path: file_sources(path, str(path), ErrorPolicy(), 99)),
    "dropped": ("p.csv", TABLE, lambda path: file_sources(path, str(path), ErrorPolicy(drop=True), 99)),
    "written prompts": ("train.jsonl", PROMPTS, read_prompts),
    "json": ("x.json", '{"a": {"b": [1, 2.5, null]}, "c": "d"}', read_json),
    "jsonl": ("x.jsonl", PROMPTS, read_jsonl),
    "table": ("x.csv", SCORES, lambda path: read_table(path, "mend it")),
    "scores": ("scores.csv", SCORES, lambda path: read_scores(path, "teacher", "a")),
    "curves": ("curves.csv", "epoch,a,b\n1,0.5,\n2,1e-3,4\n", read_curves),
    "comparison": ("table.csv", "run,title,a\nx,y,1\n", lambda path: own_figures(path, "x")),
    "dvc.lock": ("dvc.lock", LOCK, lambda path: read_lock(path.parent)),
    "dvc.yaml": ("dvc.yaml", (REPOSITORY / "dvc.yaml").read_text(), lambda path: read_pipeline(path.parent)),
    "sweep": ("sweep.yaml", (REPOSITORY / "workflow/sweep.yaml").read_text(), load_plan),
    "record": ("provenance.json", RECORD, lambda path: steps_of_record(read_record_file(Provenance, path), str(path))),
}


@pytest.mark.parametrize("name", READERS)
def test_fuzz_a_mutated_file_is_read_or_refused_in_one_line(tmp_path: Path, name: str) -> None:
    file, text, read = READERS[name]
    path = tmp_path / file
    path.write_text(text, encoding="utf-8")
    read(path)
    few = 20 if name in ("dvc.yaml", "sweep") else 60
    for data in mutations(text.encode(), name, few):
        path.write_bytes(data)
        found = outcome(partial(read, path))
        assert found is None or file in found, found


def test_fuzz_a_mutated_setting_of_plan_is_read_or_refused() -> None:
    for data in mutations(b"train_acdmd.fake_optimizer.lr=3e-5", "plan --set", 200):
        text = data.decode("utf-8", "surrogateescape")
        found = outcome(partial(changes_of, text))
        assert found is None or found.startswith("--set "), found


def test_fuzz_mutated_weights_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_tensors({"a": torch.arange(4.0), "b": torch.ones(2, 2)}, path, {"rtdmd": RECORD, "x": "y"})
    header = path.read_bytes()[:400]
    rest = path.read_bytes()[400:]
    for read in (load_tensors, record_of_weights):
        for data in mutations(header, read.__name__, 60):
            path.write_bytes(data + rest)
            found = outcome(partial(read, path))
            assert found is None or str(path) in found, found
