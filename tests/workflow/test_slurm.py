"""`snakemake --cores all --profile slurm` on a real Slurm: a disturbed run ends in the same bytes.

Three kinds: what needs no Slurm; short runs, which CI makes (RTDMD_SLURM_TEST=short); the long run with kills, minutes,
which `make slurm-test` makes as well (long). `make slurm` installs Slurm where it is missing (Debian, as root).
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest

from rtdmd.common.progress import progress
from rtdmd.pipeline.dvc_yaml import read_pipeline
from rtdmd.train.distributed.nodes import on_other_nodes
from tests.workflow.checkout import REPOSITORY, copy, environment, make_checkout, run
from tests.workflow.slurm_cluster import Cluster, wait_for
from tests.workflow.undisturbed import hashes, undisturbed

ASKED = os.environ.get("RTDMD_SLURM_TEST", "")
short = pytest.mark.skipif(
    ASKED not in ("short", "long"),
    reason="starts a Slurm of its own; `make slurm`, then RTDMD_SLURM_TEST=short, runs these",
)
long = pytest.mark.skipif(ASKED != "long", reason="takes minutes; `make slurm-test` runs it")

# Small, and long enough in training that a kill meets the middle of it.
CHANGES: dict[str, Any] = {
    "run": {"threads": 1},
    "model": {"teacher_steps": 2},
    "train_acdmd": {"iterations": 30, "save_every": 1, "log_every": 5},
    "train_rtdmd": {"epochs": 8, "save_every": 1},
    "evaluate": {"suites": [{"name": "heldout", "prompts": "heldout", "images_per_tag": 2, "reference_images": 12}]},
}
PROFILE = ("snakemake", "--cores", "all", "--profile", "slurm")


def start(root: Path) -> subprocess.Popen[bytes]:
    """Snakemake with the cluster's profile, as a person starts it; what it says goes to .rtdmd/run.log."""
    (root / ".rtdmd").mkdir(exist_ok=True)
    with (root / ".rtdmd" / "run.log").open("ab") as log:
        return subprocess.Popen(PROFILE, cwd=root, env=environment(root), stdout=log, stderr=log)


def trained(root: Path, stage: str, step: int) -> bool:
    """True once a checkpoint of `step` or later is there."""
    names = [path.name for path in (root / ".rtdmd" / "runs").glob(f"{stage}-*/step-*")]
    return any(int(name.removeprefix("step-")) >= step for name in names)


def first_step(root: Path, stage: str) -> int:
    """Where the bar of the last attempt began, by the log that a person reads."""
    found = re.search(rf"^{stage}: +(\d+)/\d+ \[", (root / "logs" / f"{stage}.log").read_text(), re.MULTILINE)
    assert found, "no line of progress"
    return int(found[1])


def jobs(cluster: Cluster, without: Container[str] = ()) -> dict[str, list[tuple[str, str]]]:
    """(job id, state) of the jobs of every stage, ``without`` those of earlier tests: the module shares one cluster."""
    found = {stage: cluster.jobs(stage) for stage in read_pipeline(REPOSITORY)}
    return {stage: [job for job in of if job[0] not in without] for stage, of in found.items()}


def job_ids(cluster: Cluster) -> set[str]:
    """The ids of all jobs of stages that the cluster knows of."""
    return {job for found in jobs(cluster).values() for job, _ in found}


def test_the_first_step_is_read_from_the_lines_that_a_log_gets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in progress(range(7, 9), desc="train_acdmd", total=9, initial=7):
        pass
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/train_acdmd.log").write_text(f"train_acdmd: begins\n{capsys.readouterr().err}")
    assert first_step(tmp_path, "train_acdmd") == 7


@short
def test_what_slurm_cannot_start_is_refused_before_outputs_go_and_a_job_that_it_can_ends_well(
    finished: Path, tmp_path: Path, cluster: Cluster
) -> None:
    root = copy(finished, tmp_path / "run")
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("title: RTDMD smoke run", "title: on a cluster"))
    page = (root / "results/report/index.html").read_bytes()
    for asked, words, refusal in (
        ("slurm_partition=nowhere", "slurm_partition nowhere, ", "invalid partition specified: nowhere"),
        ("mem_mb=640000", "mem_mb 640000, ", "Requested node configuration is not available"),
    ):
        said = run(root, *PROFILE, "--set-resources", f"report:{asked}", ok=False)
        (line,) = (line for line in said.splitlines() if "Slurm would not start report" in line)
        assert refusal in line and words in line
        assert "there is work*: 2 nodes of 2 cores, 64000 MB, gpu:2" in line
        assert "Nothing was started or removed" in line
        assert (root / "results/report/index.html").read_bytes() == page
    run(root, *PROFILE)
    assert "<title>on a cluster</title>" in (root / "results/report/index.html").read_text()
    assert [state for _, state in cluster.jobs("report")] == ["COMPLETED"]


@long
def test_cancelled_preempted_and_without_its_controllers_the_run_ends_in_the_same_bytes(
    tmp_path: Path, cluster: Cluster
) -> None:
    root = make_checkout(tmp_path / "run", CHANGES)
    expected = undisturbed(root, tmp_path / "undisturbed")
    earlier = job_ids(cluster)
    snakemake = start(root)

    # scancel in mid-training: the stage saves and ends, Snakemake submits it again, and it goes on
    wait_for("training of stage one", lambda: trained(root, "train_acdmd", 5), 900, 0.05)
    cancelled = jobs(cluster, earlier)["train_acdmd"][0][0]
    cluster.ask("scancel", cancelled)
    wait_for("a second job of stage one", lambda: len(jobs(cluster, earlier)["train_acdmd"]) == 2, 600)
    said = (root / "logs/slurm/rule_train_acdmd" / f"{cancelled}.log").read_text()
    saved = re.search(r"stopped by SIGTERM after iteration (\d+) of 30, which is saved", said)
    assert saved, said[-3000:]

    # a job of higher priority: Slurm puts stage two back into the queue, under its own id, and it goes on
    wait_for("training of stage two", lambda: trained(root, "train_rtdmd", 2), 900, 0.05)
    assert first_step(root, "train_acdmd") == int(saved[1])
    cluster.ask("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for("stage two in the queue again", lambda: cluster.state("train_rtdmd") == "PENDING", 120, 0.05)

    # both controllers die; Slurm's comes back and knows its jobs, Snakemake's orphan is cancelled as docs/slurm.md says
    wait_for("evaluation", lambda: cluster.state("evaluate") == "RUNNING", 900)
    assert first_step(root, "train_rtdmd") >= 2
    snakemake.send_signal(signal.SIGKILL)
    snakemake.wait()
    cluster.save()
    before = jobs(cluster)
    cluster.stop("slurmctld")
    cluster.start("slurmctld")
    wait_for("the same jobs as before", lambda: jobs(cluster) == before, 60)
    run(root, "scancel", "--me")
    wait_for("the end of the orphan", lambda: cluster.state("evaluate") == "CANCELLED", 120)
    assert "Directory cannot be locked" in run(root, *PROFILE, ok=False)
    run(root, "snakemake", "--unlock")
    assert start(root).wait(timeout=1800) == 0, (root / ".rtdmd/run.log").read_text()[-5000:]

    assert hashes(root) == expected
    states = {stage: [state for _, state in found] for stage, found in jobs(cluster, earlier).items()}
    twice = ["CANCELLED", "COMPLETED"]
    assert states == {stage: ["COMPLETED"] for stage in states} | {"train_acdmd": twice, "evaluate": twice}
    assert all((root / "logs" / f"{stage}.log").is_file() for stage in states)


GPU_RULES = """
rule all:
  input: "one", "two"

rule one_node:
  output: "one"
  threads: 1
  resources: gpu=2, mem_mb=500, runtime=2
  shell: "sh see.sh > {output}"

rule two_nodes:
  output: "two"
  threads: 2
  resources: nodes=2, gres="gpu:2", mem_mb=500, runtime=2
  shell: "(sh see.sh; OTHERS | sort) > {output}"
"""


@short
def test_a_job_gets_the_gpus_it_asks_for_in_one_task_of_each_node(tmp_path: Path, cluster: Cluster) -> None:
    """The executor's own flags: `gpu: 2` is one task that sees both; two nodes of two GPUs are a task on the first, and
    two that srun starts on the second."""
    (tmp_path / "see.sh").write_text("echo $SLURMD_NODENAME $SLURM_PROCID $CUDA_VISIBLE_DEVICES\n")
    others = on_other_nodes(["sh", "see.sh"], processes=4, gpus_per_node=2, threads=1)
    (tmp_path / "Snakefile").write_text(GPU_RULES.replace("OTHERS", shlex.join(others)))
    (tmp_path / "slurm").symlink_to(Path(__file__).parents[2] / "slurm")
    run(tmp_path, *PROFILE)
    assert (tmp_path / "one").read_text() == "127.0.0.1 0 0,1\n"
    assert (tmp_path / "two").read_text() == "127.0.0.1 0 0,1\n127.0.0.2 0 0,1\n127.0.0.2 1 0,1\n"
