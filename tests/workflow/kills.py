"""kill -9 at random moments of a whole run, again and again, with the documented next command after each.

    python -m tests.workflow.kills                        # 20 kills, half of them under each engine
    python -m tests.workflow.kills --kills 4 --seed 3

What dies is drawn too: every process of the run, the engine alone (its stage goes on as an orphan), or the stage alone.
A moment is a number of seconds of processor time, so that a busy machine meets the same places. Prints a line for each
kill; a run that comes to its end must have the outputs of one that nobody disturbed, and the next kill meets a new run.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rtdmd.pipeline.dvc_yaml import read_pipeline
from tests.workflow.checkout import REPOSITORY, clone, environment, git, make_checkout, run
from tests.workflow.undisturbed import hashes, undisturbed

NEXT = {
    "snakemake": ("snakemake --unlock", "snakemake --cores 1 --quiet"),
    "dvc": ("dvc repro --quiet",),
}
"""The documented commands after a kill (docs/reproducibility.md); the last is also the first."""

SMALL: dict[str, Any] = {
    "run": {"threads": 1},
    "model": {"teacher_steps": 2},
    "train_acdmd": {"iterations": 20, "save_every": 2},
    "evaluate": {"suites": [{"name": "heldout", "prompts": "heldout", "images_per_tag": 2, "reference_images": 12}]},
}
STAGE = ("rtdmd", "gate_check.py")  # programs that are a stage's own
PIPELINE = read_pipeline(REPOSITORY)


@dataclass(frozen=True)
class Kill:
    """What to kill, and after how many seconds of the run's processor time."""

    what: str
    seconds: float


def draw(seed: int, count: int, longest: float) -> list[Kill]:
    """The kills of a seed."""
    dice = random.Random(seed)
    return [Kill(dice.choice(("all", "engine", "stage")), dice.uniform(0.5, longest)) for _ in range(count)]


class Tree:
    """A started command and all that it starts."""

    def __init__(self, root: Path, command: str) -> None:
        self.root = root
        self.log = root / ".rtdmd" / "kills.log"
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command.split(), cwd=root, env=environment(root), stdout=log, stderr=log, start_new_session=True
            )
        self._used: dict[int, float] = {}

    def members(self) -> list[psutil.Process]:
        """The living processes, the first one first."""
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def seconds(self) -> float:
        """Processor time so far, of those that ended too."""
        for member in self.members():
            try:
                times = member.cpu_times()
                self._used[member.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                continue
        return sum(self._used.values())

    def kill(self, what: str) -> str:
        """Send SIGKILL; returns what the stage was doing, by its command line."""
        members = self.members()
        stages = [member for member in members if is_stage(member)]
        name = next((word for one in stages for word in one.cmdline()[1:] if word in PIPELINE), "between stages")
        victims = {"all": members, "engine": members[:1], "stage": stages or members[:1]}[what]
        while victims:
            for victim in victims:
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
            psutil.wait_procs(victims, timeout=10)
            victims = orphans(self.root) if what == "all" else []  # started after the list was made
        self.process.wait()
        return name


def is_stage(process: psutil.Process) -> bool:
    """True for `rtdmd <stage>` and what it starts."""
    try:
        return any(Path(word).name in STAGE for word in process.cmdline()[1:3])
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def orphans(root: Path) -> list[psutil.Process]:
    """What still runs in `root`."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == root.resolve():
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def disturb(root: Path, engine: str, kills: list[Kill], expected: dict[str, str]) -> Iterator[str]:
    """Run `engine` in `root` with these kills, to the end; yields a line for each kill and each end. A run that ends
    before its kill is compared (AssertionError where an output is another), wiped out and begun again."""
    for number, kill in enumerate(kills, start=1):
        tree = started(root, engine, kill)
        if tree.process.poll() is not None:
            yield ended(root, engine, tree.process.returncode, expected)
            git(root, "clean", "-ffdxq")  # results, cache, checkpoints, records
            git(root, "checkout", "--quiet", "--", ".")
            tree = started(root, engine, kill)
        stage = tree.kill(kill.what)
        yield f"{engine} {number}: {kill.what} killed after {kill.seconds:.1f} s, at {stage}"
        psutil.wait_procs(orphans(root))  # as the message of the next command says: wait for it
        for command in NEXT[engine][:-1]:
            run(root, *command.split())
    run(root, *NEXT[engine][-1].split())
    yield ended(root, engine, 0, expected)


def started(root: Path, engine: str, kill: Kill) -> Tree:
    """The engine's run at the moment of the kill, or at its end."""
    tree = Tree(root, NEXT[engine][-1])
    while tree.process.poll() is None and tree.seconds() < kill.seconds:
        time.sleep(0.02)
    return tree


def ended(root: Path, engine: str, code: int, expected: dict[str, str]) -> str:
    """A line about a run that came to its end; AssertionError where that is not as it should be."""
    assert code == 0, f"{engine} ended with {code}; see {root}/.rtdmd/kills.log"
    found = hashes(root)
    different = sorted(path for path in expected if found[path] != expected[path])
    assert not different, f"{engine}: other bytes in {', '.join(different)}"
    return f"{engine}: ran to its end; {len(expected)} of {len(expected)} outputs are equal"


def main() -> int:
    """Run the study; see the module's text."""
    parser = argparse.ArgumentParser(description="kill -9 at random moments of a whole run")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=25.0, help="latest moment [s of processor time]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = make_checkout(Path(folder) / "source", SMALL)
        expected = undisturbed(source, Path(folder) / "undisturbed")
        kills = draw(options.seed, options.kills, options.longest)
        for number, engine in enumerate(NEXT):
            root = clone(source, Path(folder) / engine)
            for line in disturb(root, engine, kills[number :: len(NEXT)], expected):
                print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
