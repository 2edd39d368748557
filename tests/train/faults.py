"""End a training stage at random moments, again and again, and compare what it leaves with a run that was left alone.

    python -m tests.train.faults                     # both stages, 20 kills each; exit code 0 if all bytes agree
    python -m tests.train.faults --kills 5 --seed 3

Each attempt is `rtdmd <stage>` (its own main) in a forked process, so that the imports are paid once. Moments are
drawn from ``--seed``: a pass of the network, a file operation (before it is done), a flush (half of what was written is
cut off first), the clock, an operation on the outputs; and for SIGTERM and SIGUSR1 a pass of the network.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rtdmd import cli
from rtdmd.common.signals import REQUEUE
from rtdmd.train import adapters as bank
from rtdmd.train.engine import checkpoint
from tests.tiny import make_tiny_clip, make_tiny_teacher
from tests.train.workshop import make_trainable
from tests.workspace import set_params

STEPS = {"train_acdmd": ("iterations", 45, 3), "train_rtdmd": ("epochs", 30, 2)}  # steps, steps between checkpoints
SPAN = 0.15  # a moment lies within this share of the whole run: about two checkpoints ahead
KINDS = ("pass", "file", "torn", "clock")
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}


@dataclass
class Counter:
    """Counts the moments of a run, and ends the process at one of them."""

    kind: str = ""
    at: float = 0
    signal: signal.Signals = signal.SIGKILL
    seen: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*KINDS, "outputs"), 0))

    def now(self, kind: str, before: Callable[[], None] = lambda: None) -> None:
        """One moment of a kind has come."""
        self.seen[kind] += 1
        if self.kind == "clock" and kind == "pass" and self.seen[kind] == 1:  # from the first pass on
            threading.Timer(self.at, os.kill, (os.getpid(), self.signal)).start()
        if self.kind == kind and self.seen[kind] == int(self.at):
            before()
            os.kill(os.getpid(), self.signal)

    def arm(self, stage: str) -> None:
        """Watch passes, file operations, flushes and the clock of this process."""
        velocity, fsync = bank.AdapterBank.velocity, os.fsync

        def counted(*arguments: Any, **more: Any) -> torch.Tensor:
            self.now("pass")
            return velocity(*arguments, **more)

        def torn(descriptor: int) -> None:
            about = os.fstat(descriptor)
            if stat.S_ISREG(about.st_mode):
                self.now("torn", lambda: os.ftruncate(descriptor, about.st_size // 2))
            fsync(descriptor)

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if event in OPERATIONS and arguments and isinstance(arguments[0], str | os.PathLike):
                path = os.fspath(arguments[0])
                if ".rtdmd/runs/" in path:
                    self.now("file")
                elif f"results/{stage}/" in path:
                    self.now("outputs")

        bank.AdapterBank.velocity, os.fsync = counted, torn  # type: ignore[method-assign, assignment]
        sys.addaudithook(audit)


def attempt(root: Path, stage: str, counter: Counter) -> int:
    """`rtdmd <stage>` in a forked process; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.chdir(root)
            log = os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            counter.arm(stage)
            code = cli.main([stage])
            (root / "counts").write_text(repr(counter.seen))
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass
class Study:
    """One stage in one workspace: the run that is left alone, then the one that is not."""

    root: Path
    stage: str
    whole: dict[str, bytes] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def fresh(self) -> None:
        """Forget the stage's run and its results."""
        for run in (self.root / ".rtdmd/runs").glob(f"{self.stage}-*"):
            shutil.rmtree(run)
        shutil.rmtree(self.root / "results" / self.stage, ignore_errors=True)

    def outputs(self) -> dict[str, bytes]:
        """What the stage has put in place."""
        files = (self.root / "results" / self.stage).glob("*")
        return {path.name: path.read_bytes() for path in sorted(files) if path.is_file()}

    def leave_alone(self) -> None:
        """The reference: its bytes, and how many moments of each kind it has."""
        self.fresh()
        start = time.monotonic()
        if attempt(self.root, self.stage, Counter()) != 0:
            raise RuntimeError((self.root / "log").read_text()[-3000:])
        counts = (self.root / "counts").read_text()
        self.whole, self.total = self.outputs(), eval(counts) | {"clock": time.monotonic() - start}

    def draw(self, kind: str, dice: random.Random) -> float:
        """A moment of a kind within the next SPAN of the run (of the outputs: any of them)."""
        if kind == "clock":
            return dice.uniform(0.0, SPAN) * self.total["clock"]
        return dice.randint(1, int(self.total[kind] * (1 if kind == "outputs" else SPAN)))

    def end(self, number: int, kind: str, sent: signal.Signals, dice: random.Random) -> bool:
        """End one attempt; a line of the table. False where the run was over before the moment came."""
        at = self.draw(kind, dice)
        code = attempt(self.root, self.stage, Counter(kind, at, sent))
        if code == 0:
            return False
        self.expect(code == (-9 if sent == signal.SIGKILL else REQUEUE), f"{kind} {at}: exit code {code}")
        if kind != "outputs":
            self.expect(not self.outputs(), f"{kind} {at}: outputs before the end")
        (run,) = (self.root / ".rtdmd/runs").glob(f"{self.stage}-*")
        lines = (run / checkpoint.JOURNAL).read_text().count("\n") if (run / checkpoint.JOURNAL).exists() else 0
        saved = sorted(path.name for path in run.glob("step-*"))
        torn = "yes" if list(run.glob(".*")) else ""
        where = f"{at:.2f} s" if kind == "clock" else f"{at:.0f} of {self.total[kind]:.0f}"
        last = int(saved[-1][5:]) if saved else 0
        print(f"| {number} | {sent.name} | {kind} {where} | {lines} | {last} | {torn} |", flush=True)
        return True

    def expect(self, holds: bool, text: str) -> None:
        """Note what should have held and did not."""
        if not holds:
            self.faults.append(text)
            print(f"FAULT: {text}", flush=True)

    def finish(self) -> None:
        """Let the run end, and compare it with the reference."""
        code = attempt(self.root, self.stage, Counter())
        found = self.outputs()
        different = [name for name in self.whole if found.get(name) != self.whole[name]]
        self.expect(code == 0 and found.keys() == self.whole.keys() and not different, f"code {code}, {different}")
        (run,) = (self.root / ".rtdmd/runs").glob(f"{self.stage}-*")
        steps = (run / checkpoint.JOURNAL).read_text().count("\n")
        self.expect(steps == STEPS[self.stage][1], f"{steps} lines in the journal")
        self.expect(not list(run.glob(".*")), "a partial checkpoint is left")

    def run(self, plan: list[tuple[str, signal.Signals]], dice: random.Random) -> None:
        """Every planned end; a run that was over before one starts again, so that each of them happens."""
        print("\n| end | by | moment | steps begun | goes on from | partial files left |\n|---|---|---|---|---|---|")
        self.fresh()
        for number, (kind, sent) in enumerate(plan, start=1):
            while not self.end(number, kind, sent, dice):
                self.finish()
                self.fresh()
        self.finish()
        verdict = "the same bytes as the run left alone" if not self.faults else f"FAULTS: {self.faults}"
        print(f"\n{self.stage}: {len(plan)} ends, then {', '.join(sorted(self.whole))}: {verdict}", flush=True)


def workspace(root: Path) -> None:
    """A tiny workspace whose two training stages are ready to run."""
    for stage in STEPS:
        import_module(f"rtdmd.stages.{stage}")
    torch.set_num_threads(1)  # no thread of the parent's is missed after the fork
    teacher, clip = make_tiny_teacher(root / "models/teacher"), make_tiny_clip(root / "models/clip")
    make_trainable(root, teacher, clip)
    sections: dict[str, dict[str, Any]] = {
        stage: {length: steps, "save_every": every, "log_every": 2} for stage, (length, steps, every) in STEPS.items()
    }
    # the tiny teacher draws noise, which the world's verifier finds wrong throughout: CLIP's cosine tells images apart
    sections["train_rtdmd"] |= {"rewards": [{"name": "clipscore", "model": "data/world/clip", "weight": 1.0}]}
    set_params(root, sections)


def main(argv: list[str] | None = None) -> int:
    """Exit code 1 where any byte differs."""
    parser = argparse.ArgumentParser(description="fault study of the training stages")
    parser.add_argument("--kills", type=int, default=20, help="kill -9 per stage (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="root of the moments (default: %(default)s)")
    parser.add_argument("--stages", nargs="+", choices=STEPS, default=list(STEPS))
    arguments = parser.parse_args(argv)
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workspace(root)
        for stage in STEPS:  # stage two needs stage one
            study, dice = Study(root, stage), random.Random(f"{arguments.seed} {stage}")
            study.leave_alone()
            if stage not in arguments.stages:
                continue
            counts = ", ".join(f"{value:.3g} {name}" for name, value in study.total.items())
            print(f"\n{stage}, seed {arguments.seed}; a run left alone has {counts} (clock in seconds)", flush=True)
            kinds = [dice.choice(KINDS) for _ in range(arguments.kills - 1)] + ["outputs"]
            plan = [(kind, signal.SIGKILL) for kind in kinds]
            for sent in SIGNALS.values():
                plan.insert(dice.randrange(len(plan)), ("pass", sent))
            study.run(plan, dice)
            faults += len(study.faults)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
