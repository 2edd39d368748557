"""A training of two processes on two nodes of a real Slurm, disturbed in every way, ends in the bytes of two processes
on one machine. It takes minutes: RTDMD_SLURM_TEST=long, which `make slurm-test` sets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rtdmd.common.files import sha256_file
from rtdmd.config import preset
from rtdmd.config.render import params_text
from rtdmd.pipeline.dvc_yaml import read_pipeline
from tests.workflow.checkout import copy, make_checkout, run
from tests.workflow.slurm_cluster import NODES, Cluster, wait_for
from tests.workflow.test_slurm import long, trained

pytestmark = long
STAGE = "train_acdmd"
FIRST, SECOND = NODES
SNAKEMAKE = ("snakemake", "--cores", "all", "--profile", "slurm", STAGE)
TRAINING = {"iterations": 24, "save_every": 1, "log_every": 5, "processes": 2, "batch_size": 4}
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")
SAVED = r"stopped by SIGTERM after iteration \d+ of 24, which is saved"
ALONE = "another process of the run ended or does not answer; .* the same command goes on from the last checkpoint"


def params(gpus_per_node: int | None) -> str:
    """Of a training that is long enough for a kill in its middle."""
    changes: dict[str, Any] = {"model": {"teacher_steps": 2}, STAGE: TRAINING}
    return params_text(preset("smoke", changes | {"run": {"threads": 1, "gpus_per_node": gpus_per_node}}), "a test")


def outputs(root: Path) -> dict[str, str]:
    """SHA-256 of all that the stage writes."""
    return {path: sha256_file(root / path) for path in read_pipeline(root)[STAGE].outs}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout before the training. Copy it, no more."""
    root = make_checkout(tmp_path_factory.mktemp("nodes") / "ready")
    (root / "params.yaml").write_text(params(None), encoding="utf-8")
    run(root, "dvc", "repro", "--quiet", "cache_teacher")
    return root


@pytest.fixture(scope="module")
def expected(ready: Path) -> dict[str, str]:
    """What two processes of one machine leave."""
    root = copy(ready, ready.with_name("one-machine"))
    run(root, "rtdmd", STAGE)
    return outputs(root)


@pytest.fixture
def root(ready: Path, tmp_path: Path, cluster: Cluster) -> Iterator[Path]:
    """The checkout of one test, whose training runs on two nodes. Nothing of it runs on after the test."""
    root = copy(ready, tmp_path / "run")
    (root / "params.yaml").write_text(params(1), encoding="utf-8")
    cluster.wait_until_idle()
    yield root
    cluster.ask("scancel", "--me")


def submit(root: Path) -> str:
    """`dvc repro` in a job of two nodes; the job's id. What all such jobs say is in batch.log."""
    wrapped = f"trap '' TERM; dvc repro --quiet --single-item {STAGE}"
    options = ("--nodes=2", "--ntasks=2", "--requeue", "--output=batch.log", "--open-mode=append")
    return run(root, "sbatch", "--parsable", f"--comment=rule_{STAGE}", *options, f"--wrap={wrapped}").strip()


def cancel(cluster: Cluster, job: str) -> None:
    """By its owner."""
    cluster.ask("scancel", job)


def preempt(cluster: Cluster, job: str) -> None:
    """By a job of higher priority, which needs both nodes."""
    cluster.ask("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for("the job in the queue again", lambda: state(cluster, job) == "PENDING", 60, 0.05)


def kill_rank(cluster: Cluster, job: str) -> None:
    """The process on the second node."""
    (task,) = (one for one in psutil.process_iter(["cmdline"]) if is_task(one))
    task.kill()


def is_task(process: psutil.Process) -> bool:
    """Whether it runs the stage on the second node."""
    mine = (process.info["cmdline"] or [])[-3:] == ["-m", "rtdmd", STAGE]
    return mine and process.environ().get("SLURMD_NODENAME") == SECOND


def lose_second(cluster: Cluster, job: str) -> None:
    """slurmd, slurmstepd and all that they started."""
    lose(cluster, job, SECOND)


def lose_first(cluster: Cluster, job: str) -> None:
    """With the stage itself."""
    lose(cluster, job, FIRST)


def lose(cluster: Cluster, job: str, node: str) -> None:
    """A node, which comes back once Slurm has missed it and put the job back into the queue."""
    cluster.lose(node)
    wait_for("the job in the queue again", lambda: state(cluster, job) == "PENDING", 150)
    cluster.start(node)


def state(cluster: Cluster, job: str) -> str:
    """Of a job."""
    return cluster.ask("squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T").strip()


def test_snakemake_submits_one_job_of_two_nodes(root: Path, cluster: Cluster, expected: dict[str, str]) -> None:
    run(root, *SNAKEMAKE)
    assert outputs(root) == expected
    jobs = cluster.ask("squeue", "--noheader", "--states=all", "--sort=i", "--format=%T %k %D nodes").splitlines()
    assert jobs[-1] == "COMPLETED rule_train_acdmd 2 nodes"


@pytest.mark.parametrize(
    ("fault", "again", "says"),
    [
        (cancel, True, SAVED),
        (preempt, False, SAVED),
        (kill_rank, True, ALONE),
        (lose_second, False, ALONE),
        (lose_first, False, ""),
    ],
)
def test_a_disturbed_job_ends_soon_and_goes_on_to_the_same_bytes(
    root: Path,
    cluster: Cluster,
    expected: dict[str, str],
    fault: Callable[[Cluster, str], None],
    again: bool,
    says: str,
) -> None:
    """Under its own id where Slurm puts it back into the queue, else when it is submitted ``again``."""
    job = submit(root)
    wait_for("training", lambda: trained(root, STAGE, 5), 300, 0.05)
    fault(cluster, job)
    if again:
        wait_for("the job's end", lambda: state(cluster, job) in ENDS, 120)
        assert not (root / "results" / STAGE / "generator.safetensors").exists()
        cluster.wait_until_idle()
        job = submit(root)
    wait_for("the end of the training", lambda: state(cluster, job) in ENDS, 300)
    said = (root / "batch.log").read_text()
    assert state(cluster, job) == "COMPLETED", said[-3000:]
    assert outputs(root) == expected
    assert re.search(says, said), said[-3000:]
    starts = re.findall(rf"^{STAGE}: +(\d+)/24 \[", said, re.MULTILINE)
    assert starts.count("0") == 1, "the second attempt began at the first iteration"
