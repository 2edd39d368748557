"""What a stage of several nodes asks srun for, and what it says where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from rtdmd.common.errors import UserError
from rtdmd.config import preset
from rtdmd.plan.resources import StageResources
from rtdmd.train.distributed.nodes import address, on_other_nodes, require_allocation

JOB = {"SLURM_JOB_ID": "17", "SLURMD_NODENAME": "gpu03"}
ASKED = r"^train_acdmd\.processes: 16 with run\.gpus_per_node: 8 takes 2 nodes"
SUBMIT = r"`snakemake --cores all --profile slurm` asks for them, as does `sbatch --nodes=2`$"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A job on two nodes, by what squeue says; the first is gpu03."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "squeue").write_text("#!/bin/sh\n[ $2 = --jobs=17 ] && echo '2 gpu[03-04]'\n")
    for name in ("srun", "squeue"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return JOB | {"PATH": str(tmp_path)}


def test_srun_starts_a_task_for_each_process_of_the_other_nodes() -> None:
    line = on_other_nodes(["rtdmd", "train_acdmd"], processes=32, gpus_per_node=8, threads=4)
    assert line[0] == "srun" and line[-2:] == ["rtdmd", "train_acdmd"]
    asked = {"--relative=1", "--nodes=3", "--ntasks=24", "--ntasks-per-node=8", "--cpus-per-task=4"}
    assert asked <= set(line)


def test_rank_0_is_found_by_slurms_name_of_its_node_or_by_the_address_that_is_set() -> None:
    assert address(JOB) == "gpu03"
    assert address(JOB | {"MASTER_ADDR": "10.0.0.3"}) == "10.0.0.3"


def test_a_job_with_nodes_enough_is_taken_on_its_first_node_alone(slurm: dict[str, str]) -> None:
    require_allocation("train_acdmd", 16, 8, slurm)
    elsewhere = r"starts on the first, gpu03, of Slurm's job 17, but this is {}; .*command to `srun .*gpu03`$"
    with pytest.raises(UserError, match=elsewhere.format("on gpu04")):
        require_allocation("train_acdmd", 16, 8, slurm | {"SLURMD_NODENAME": "gpu04"})
    login = {name: value for name, value in slurm.items() if name != "SLURMD_NODENAME"}
    with pytest.raises(UserError, match=elsewhere.format("on none of its nodes")):
        require_allocation("train_acdmd", 16, 8, login)


def test_where_the_nodes_are_not_there_one_line_says_who_asks_for_them(slurm: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"{ASKED}, and this is not a Slurm job; {SUBMIT}"):
        require_allocation("train_acdmd", 16, 8, {"PATH": slurm["PATH"]})
    with pytest.raises(UserError, match=f"{ASKED}, whose processes srun starts, but there is no srun; put Slurm's"):
        require_allocation("train_acdmd", 16, 8, JOB | {"PATH": "/nowhere"})
    with pytest.raises(UserError, match=r"takes 3 nodes, but Slurm's job 17 has 2; .* as does `sbatch --nodes=3`$"):
        require_allocation("train_acdmd", 24, 8, slurm)
    with pytest.raises(UserError, match=r"^SLURM_JOB_ID: squeue knows no running job 18 "):
        require_allocation("train_acdmd", 16, 8, slurm | {"SLURM_JOB_ID": "18"})


def test_processes_that_do_not_fill_their_nodes_are_refused_by_the_params() -> None:
    stage = {"processes": 12, "batch_size": 12}
    with pytest.raises(UserError, match=r"train_acdmd\.processes: 12 with run\.gpus_per_node: 8; allowed: 1 to 8, a m"):
        preset("smoke", {"run": {"gpus_per_node": 8}, "train_acdmd": stage})
    assert preset("smoke", {"run": {"gpus_per_node": 16}, "train_acdmd": stage}).layout("train_acdmd") == (1, 12)
    params = preset("smoke", {"run": {"gpus_per_node": 4}, "train_acdmd": stage})
    assert (params.layout("train_acdmd"), params.layout("evaluate")) == ((3, 4), (1, 1))


def test_a_job_of_several_nodes_has_a_task_with_its_gpus_on_each() -> None:
    stage = {"processes": 16, "batch_size": 16}
    cuda = preset("smoke", {"run": {"device": "cuda", "gpus_per_node": 8}, "train_acdmd": stage})
    asked = StageResources(cuda).of("train_acdmd")
    assert (asked["nodes"], asked["gres"], asked.keys() & {"gpu", "tasks"}) == (2, "gpu:8", set())
    assert "gpu" in StageResources(cuda).of("train_rtdmd")
    cpu = preset("smoke", {"run": {"gpus_per_node": 8}, "train_acdmd": stage})
    asked = StageResources(cpu).of("train_acdmd")
    assert (asked["nodes"], asked["tasks"], asked.keys() & {"gpu", "gres"}) == (2, 2, set())
