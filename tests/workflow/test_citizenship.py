"""What Snakemake's users expect of a workflow: log, benchmark, message and resources everywhere, a picture of the DAG,
a report, and environments that are those of the lock."""

from __future__ import annotations

import html
import json
import re
import runpy
from pathlib import Path

import yaml

from rtdmd.config import load_params
from rtdmd.pipeline.engines import load_jobs
from tests.workflow.checkout import copy, run

ENVS = Path("workflow/envs")
RULE = re.compile(r"^( *)rule ?(\w*):\n((?:\1 +.*\n|\n)+)", re.MULTILINE)
ASKED = {"log", "benchmark", "message", "resources", "threads", "conda"}


def rules_that_run() -> dict[str, set[str]]:
    """The directives of each rule that has a command; `stages` is the one that stands for every stage of dvc.yaml."""
    found = {}
    for path in [Path("Snakefile"), *Path("workflow/rules").glob("*.smk")]:
        for indent, name, body in RULE.findall(path.read_text()):
            found[name or path.stem] = set(re.findall(rf"^{indent}    (\w+):", body, re.MULTILINE))
    return {name: directives for name, directives in found.items() if "shell" in directives}


def test_every_rule_that_runs_says_all_that_is_asked() -> None:
    rules = rules_that_run()
    assert {"stages", "world", "upload", "sweep_method"} <= set(rules)
    assert {name: ASKED - directives for name, directives in rules.items() if ASKED - directives} == {}


def test_the_pictures_edges_are_the_stages_own() -> None:
    """`make dag` draws docs/dag.svg again."""
    jobs = load_jobs(load_params())
    makers = {path: job.name for job in jobs.values() for path in job.outputs}
    expected = {(makers[path], job.name) for job in jobs.values() for path in job.inputs if path in makers}
    text = html.unescape(Path("docs/dag.svg").read_text(encoding="utf-8"))
    names = dict(re.findall(r"<title>(\d+)</title>.*?<text [^>]*>(\w+)</text>", text, re.DOTALL))
    assert set(names.values()) == set(jobs)
    assert {(names[a], names[b]) for a, b in re.findall(r"<title>(\d+)->(\d+)</title>", text)} == expected


def test_conda_environment_and_image_are_the_lock() -> None:
    lock = Path("requirements.lock").read_text(encoding="utf-8")
    made = runpy.run_path(str(ENVS / "from_lock.py"))
    text = (ENVS / "python.yaml").read_text(encoding="utf-8")
    assert text == made["environment"](lock), "run `python workflow/envs/from_lock.py`"
    environment = yaml.safe_load(text)["dependencies"]
    pinned = re.findall(r"^([a-z0-9._-]+)==(\S+)$", lock, re.MULTILINE)
    assert environment[-1]["pip"] == [f"{name}=={version}" for name, version in pinned]
    image = (ENVS / "Containerfile").read_text(encoding="utf-8")
    assert "--requirement /opt/rtdmd/requirements.lock" in image
    makefile = Path("Makefile").read_text(encoding="utf-8")
    python = re.search(r"PYTHON \?= python(3\.\d+)", makefile)
    assert python
    assert f"python={python[1]}" in environment
    assert f"library/python:{python[1]}-slim" in image


def test_the_catalog_file_says_what_is_true() -> None:
    usage = yaml.safe_load(Path(".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage["report"] is True
    assert usage["software-stack-deployment"]["conda"] is True
    assert Path("profiles/default/config.yaml").is_file()
    assert Path("slurm/config.yaml").samefile("profiles/slurm/config.yaml")


def test_the_report_holds_every_picture_page_and_table(finished: Path, tmp_path: Path) -> None:
    root = copy(finished, tmp_path / "checkout")
    run(root, "snakemake", "--report", ".rtdmd/report.html", "--quiet")
    text = (root / ".rtdmd/report.html").read_text(encoding="utf-8")
    shown = {path for job in load_jobs(load_params()).values() for path in job.outputs}
    shown = {path for path in shown if Path(path).suffix in (".html", ".png", ".csv")}
    assert len(shown) > 8
    assert [path for path in sorted(shown) if json.dumps(path) not in text] == []
