"""The scorers of a run together: where their weights lie between epochs, and who scores beside the run.

A scorer that passes no gradient and leaves the run's device idle (it reads bytes, sorts detections, or waits for
another process) scores in a thread of its own, while the next images are decoded and until its scores are asked for.
That moves no number: a thread shares nothing with the others, and its scorer sees the same batches in the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rtdmd.rewards.golden import check_rewards
from rtdmd.rewards.protocol import Metadata, Reward
from rtdmd.rewards.registry import load_reward
from rtdmd.rewards.remote import RemoteReward

if TYPE_CHECKING:
    from rtdmd.rewards.registration import RewardParams

Batch = tuple[Tensor, Sequence[str], Sequence[Metadata]]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Panel:
    """Scorers by name, those whose weights are on ``device`` only while they score, and those with a thread."""

    rewards: Mapping[str, Reward]
    device: torch.device
    offloaded: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()

    def only(self, names: Collection[str]) -> Panel:
        """The scorers of ``names`` alone; they are the same, loaded once."""
        return Panel(
            {name: reward for name, reward in self.rewards.items() if name in names},
            self.device,
            self.offloaded & set(names),
            self.beside & set(names),
        )

    @contextmanager
    def scoring(self, batches: Iterable[Batch], ahead: int | None = None) -> Iterator[Scoring]:
        """Score batches of images (B, 3, H, W) in [0, 1]; inside the ``with`` all scorers without a thread are done.

        ahead: how many batches may wait for a thread, so that memory does not grow with their number; None: all.
        At the end the offloaded scorers are back on the CPU, and what a thread has not begun is dropped.
        """
        with ExitStack() as stack:
            for name in self.offloaded:
                stack.callback(self.rewards[name].to, CPU)
                if name not in self.beside:
                    self.rewards[name].to(self.device)
            scores = {name: torch.no_grad()(reward.score) for name, reward in self.rewards.items()}
            scoring = Scoring({name: [] for name in self.rewards}, {name: [] for name in self.beside})
            threads = {name: ThreadPoolExecutor(1, f"reward-{name}") for name in sorted(self.beside)}
            for name, thread in threads.items():
                stack.callback(thread.shutdown, cancel_futures=True)
                if name in self.offloaded:
                    scoring.moves.append(thread.submit(self.rewards[name].to, self.device))
            try:
                for images, prompts, metadata in batches:
                    read = images.to(CPU) if threads else images  # what such scorers read; the device keeps no copy
                    for name, score in scores.items():
                        if name not in threads:
                            scoring.parts[name].append(score(images, prompts, metadata))
                            continue
                        pending = scoring.pending[name]
                        if ahead is not None and len(pending) >= ahead:
                            pending[-ahead].result()
                        pending.append(threads[name].submit(score, read, prompts, metadata))
                for name, thread in threads.items():
                    if name in self.offloaded:
                        scoring.moves.append(thread.submit(self.rewards[name].to, CPU))
                yield scoring
            except BaseException:
                # Nobody wants the answers of other processes any more: let no thread, on its way out, wait for one.
                for name in self.beside:
                    reward = self.rewards[name]
                    if isinstance(reward, RemoteReward):
                        reward.close()
                raise


@dataclass(frozen=True)
class Scoring:
    """Scores of each batch by scorer, and those that threads have under way."""

    parts: dict[str, list[Tensor]]
    pending: dict[str, list[Future[Tensor]]]
    moves: list[Future[None]] = field(default_factory=list)

    def scores(self, device: torch.device) -> dict[str, Tensor]:
        """All scores (N,) by scorer, on ``device``, after waiting for them; what a scorer raised is raised here."""
        for move in self.moves:
            move.result()
        found: dict[str, Tensor] = {}
        for name, parts in self.parts.items():
            parts = parts + [part.result() for part in self.pending.get(name, ())]
            found[name] = torch.cat([part.to(device) for part in parts])
        return found


def open_panel(specs: Sequence[RewardParams], device: torch.device, root: Path) -> Panel:
    """Load the scorers one after the other, each tried by the golden check before the next one; see `load_reward`."""
    rewards: dict[str, Reward] = {}
    for spec in specs:
        rewards[spec.name] = load_reward(spec, device, root)
        check_rewards([rewards[spec.name]], root)
        if spec.offload:
            rewards[spec.name].to(CPU)
    offloaded = frozenset(spec.name for spec in specs if spec.offload)
    return Panel(rewards, device, offloaded, frozenset(spec.name for spec in specs if has_thread(spec, device)))


def has_thread(spec: RewardParams, device: torch.device) -> bool:
    """Whether a scorer has a thread: where it passes no gradient and leaves ``device`` idle. On the CPU only another
    process does; here a thread would take from the others' time."""
    return not spec.differentiable and (spec.socket is not None or device.type != "cpu")
