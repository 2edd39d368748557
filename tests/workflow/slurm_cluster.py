"""A real Slurm of two nodes, in a folder, on the loopback address, as the current user: munged, slurmctld, two slurmd.

    with Cluster(folder) as cluster:
        subprocess.run(["sbatch", ...], env=cluster.env)

It needs Debian's `slurmctld slurmd slurm-client munge` (`make slurm-test` installs them) and touches no configuration
of the machine. Two partitions: `work`, and `urgent`, whose jobs preempt those of `work` (they are requeued). Two GPUs
in each node that are none, so that requests for them can be seen. No accounting, no cgroups. The nodes are called by
addresses, since the processes of a run find its first node by its name.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # the daemons are not on every user's path

SLURM_CONF = """
ClusterName=rtdmd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
MinJobAge=7200
KillWait=60
SlurmdTimeout=30
ReturnToService=2
GresTypes=gpu
NodeName=DEFAULT CPUs=2 RealMemory=64000 Gres=gpu:2
NodeName=127.0.0.1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first}
NodeName=127.0.0.2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second}
PartitionName=work Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=9
"""
NODES = ("127.0.0.1", "127.0.0.2")
IDLE = ("2\n", "2\n2\n")  # in one line, or one for each partition
GRES_CONF = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"


def missing_programs() -> list[str]:
    """Programs of Slurm and munge that this machine does not have."""
    return [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]


def wait_for(what: str, ready: Callable[[], Any], seconds: float = 60, pause: float = 0.1) -> Any:
    """The first true value of `ready()`; AssertionError naming `what` after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := ready():
            return value
        time.sleep(pause)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


class Cluster:
    """The daemons as children of this process: `munged`, `slurmctld` and, by the name of its node, each `slurmd`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = self._environment()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        for name in ("state", *(f"spool-{node}" for node in NODES), "bin"):
            (self.folder / name).mkdir(parents=True)
        self._write_configuration()
        self.start("munged")
        wait_for("munged", (self.folder / "munge.socket").exists)
        self.start("slurmctld")
        for node in NODES:
            self.start(node)
        try:
            self.wait_until_idle()
        except AssertionError as error:
            logs = [(path.name, path.read_text()[-1500:]) for path in self.folder.glob("*.log")]
            self.__exit__()
            raise AssertionError(f"{error}; {logs}") from error
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(
            ["scancel", "--full", "--user", getpass.getuser()], env=self.env, capture_output=True, check=False
        )
        for name in (*NODES, "slurmctld", "munged"):
            self.stop(name, signal.SIGTERM)
        self._kill_strays()

    def _kill_strays(self) -> None:
        """Without cgroups Slurm loses sight of a process whose parent ended first; the clients' variable tells them."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                mine = process.environ().get("SLURM_CONF") == self.env["SLURM_CONF"]
                if mine and process.pid != os.getpid():
                    process.kill()

    def wait_until_idle(self) -> None:
        """Wait until both nodes are."""
        wait_for("idle nodes", lambda: self.ask("sinfo", "--noheader", "--states=idle", "--format=%D") in IDLE)

    def start(self, name: str) -> None:
        """Start a daemon in the foreground, as a child; its log is `<name>.log`."""
        options = {
            "munged": [
                "--foreground",
                "--force",
                f"--key-file={self.folder}/munge.key",
                f"--socket={self.folder}/munge.socket",
                f"--pid-file={self.folder}/munged.pid",
                f"--seed-file={self.folder}/munge.seed",
                "--num-threads=2",
            ],
            "slurmctld": ["-D"],
            "slurmd": ["-D", "-N", name],
        }
        daemon = "slurmd" if name in NODES else name
        program = shutil.which(daemon, path=SBIN)
        assert program, daemon
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [program, *options[daemon]], env=self.env, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a daemon a signal and wait for its end (10 s; then SIGKILL)."""
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.send_signal(how)
        try:
            daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def lose(self, node: str) -> None:
        """A node's power cut: its slurmd and all that it started are killed, first those who could tell of it."""
        self.stop(node)
        tasks = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                env = process.environ()
                if (env.get("SLURM_CONF"), env.get("SLURMD_NODENAME")) == (self.env["SLURM_CONF"], node):
                    tasks.append(process)
        parents = {parent for task in tasks if (parent := task.parent()) and parent.name() == "slurmstepd"}
        for process in (*parents, *tasks):
            with suppress(psutil.Error):
                process.kill()

    def ask(self, *command: str) -> str:
        """What a Slurm command prints; empty where it fails."""
        return subprocess.run(command, env=self.env, capture_output=True, text=True, check=False, timeout=60).stdout

    def save(self) -> None:
        """Wait until slurmctld has all that it knows now on disk, which it does seconds later: killed before, it
        forgets. It writes all jobs at once, so what it knew before a job is there when that job is: one that is held.
        """
        mark = secrets.token_hex(8)
        self.ask("sbatch", "--hold", f"--comment={mark}", "--output=/dev/null", "--wrap=true")
        wait_for("slurmctld's state on disk", lambda: mark.encode() in self._written_jobs())

    def _written_jobs(self) -> bytes:
        with suppress(FileNotFoundError):  # for a moment, while a new one takes its place
            return (self.folder / "state" / "job_state").read_bytes()
        return b""

    def jobs(self, stage: str) -> list[tuple[str, str]]:
        """(job id, state) of every job of a Snakemake rule, in the order of submission."""
        lines = self.ask("squeue", "--noheader", "--states=all", "--sort=i", "--format=%i|%T|%k").splitlines()
        rows = [line.split("|") for line in lines]
        return [(row[0], row[1]) for row in rows if row[2] == f"rule_{stage}"]

    def state(self, stage: str) -> str:
        """The state of a rule's newest job; empty while it has none."""
        jobs = self.jobs(stage)
        return jobs[-1][1] if jobs else ""

    def _environment(self) -> dict[str, str]:
        """The configuration for every client, and none of an outer job's variables."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
        return inherited | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),  # the folder is this cluster's own
            "PATH": f"{self.folder}/bin:{inherited['PATH']}",
            "LC_ALL": "C.UTF-8",
        }

    def _write_configuration(self) -> None:
        controller, first, second = free_ports(3)
        self.folder.chmod(0o755)
        values = {"folder": self.folder, "host": socket.gethostname().split(".")[0], "user": getpass.getuser()}
        text = SLURM_CONF.format(**values, controller=controller, first=first, second=second)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(GRES_CONF)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        # Snakemake's job step drops SLURM_*, and with it the place of the configuration, before it calls srun:
        # that place is written into the programs that a job calls
        for name in ("srun", "squeue"):
            wrapper = self.folder / "bin" / name
            program = shutil.which(name, path=os.environ["PATH"])
            wrapper.write_text(f"#!/bin/sh\nexport SLURM_CONF='{self.folder}/slurm.conf'\nexec {program} \"$@\"\n")
            wrapper.chmod(0o755)
