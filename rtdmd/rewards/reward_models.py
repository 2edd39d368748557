"""The scorers of a run together: where their weights lie, and who scores beside the run.

A scorer that is offloaded is on the device while it scores and at no other time: images wait on the host until there
are enough of them, then the offloaded scorers come in turn, so that no two of them are there at once. A scorer that
passes no gradient and leaves the run's device idle (it reads bytes, sorts detections, or waits for another process)
scores in a thread of its own, while the next images are decoded and until its scores are asked for. Neither moves a
number: each scorer sees the same batches in the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
MAX_WAITING = 2**32  # bytes of images that wait on the host for the offloaded scorers, 4 GiB


@dataclass(frozen=True)
class RewardModels:
    """Scorers by name, those whose weights are on ``device`` only while they score, and those with a thread, which are
    others."""

    rewards: Mapping[str, Reward]
    device: torch.device
    offloaded: frozenset[str] = frozenset()
    threaded: frozenset[str] = frozenset()

    def only(self, names: Collection[str]) -> RewardModels:
        """The scorers of ``names`` alone; they are the same, loaded once."""
        return RewardModels(
            {name: reward for name, reward in self.rewards.items() if name in names},
            self.device,
            self.offloaded & set(names),
            self.threaded & set(names),
        )

    @contextmanager
    def on_device(self, name: str) -> Iterator[Reward]:
        """A scorer with its weights on the device; afterwards they are on the host again if it is offloaded."""
        reward = self.rewards[name]
        if name not in self.offloaded:
            yield reward
            return
        try:
            reward.to(self.device)
            yield reward
        finally:
            reward.to(CPU)

    @contextmanager
    def scoring(self, batches: Iterable[Batch], ahead: int | None = None) -> Iterator[Scoring]:
        """Score batches of images (B, 3, H, W) in [0, 1]; inside the ``with`` all scorers without a thread are done.

        ahead: how many batches may wait for a thread, so that memory does not grow with their number; None: all.
        At the end what a thread has not begun is dropped.
        """
        with ExitStack() as stack:
            staying = [name for name in self.rewards if name not in self.offloaded]
            scores = {name: torch.no_grad()(self.rewards[name].score) for name in staying}
            scoring = Scoring({name: [] for name in self.rewards}, {name: [] for name in self.threaded})
            threads = {name: ThreadPoolExecutor(1, f"reward-{name}") for name in sorted(self.threaded)}
            for thread in threads.values():
                stack.callback(thread.shutdown, cancel_futures=True)
            waiting = list[Batch]()
            size = 0
            try:
                for images, prompts, metadata in batches:
                    # What threads and offloaded scorers read; the device keeps no copy.
                    read = images.to(CPU) if threads or self.offloaded else images
                    if self.offloaded:
                        waiting.append((read, prompts, metadata))
                        size += read.nbytes
                    for name, score in scores.items():
                        if name not in threads:
                            scoring.parts[name].append(score(images, prompts, metadata))
                            continue
                        pending = scoring.pending[name]
                        if ahead is not None and len(pending) >= ahead:
                            pending[-ahead].result()
                        pending.append(threads[name].submit(score, read, prompts, metadata))
                    del images, read
                    if size >= MAX_WAITING:
                        self._score_offloaded(waiting, scoring)
                        waiting = []
                        size = 0
                if waiting:
                    self._score_offloaded(waiting, scoring)
                yield scoring
            except BaseException:
                # Nobody wants the answers of other processes any more: let no thread, on its way out, wait for one.
                for name in self.threaded:
                    reward = self.rewards[name]
                    if isinstance(reward, RemoteReward):
                        reward.close()
                raise

    @torch.no_grad()
    def _score_offloaded(self, batches: Sequence[Batch], scoring: Scoring) -> None:
        """Let each offloaded scorer score the batches that waited for it."""
        for name in self.rewards:
            if name in self.offloaded:
                with self.on_device(name) as reward:
                    scoring.parts[name] += [reward.score(*batch) for batch in batches]

    def gradients(self, batches: Sequence[Batch], weights: Mapping[str, float]) -> list[tuple[Tensor, Tensor]]:
        """Of each batch the weighted sum of the scores (B,) of the scorers that ``weights`` names, and its gradient
        (B, 3, H, W), both on the images' device. A scorer's graph is gone before the next scorer runs."""
        found: list[tuple[Tensor, Tensor]] = []
        for name, weight in weights.items():
            with self.on_device(name) as reward:
                for i, (images, prompts, metadata) in enumerate(batches):
                    leaf = images.detach().requires_grad_()
                    scores = reward.score(leaf, prompts, metadata)
                    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
                    value = weight * scores.detach().to(leaf.device)
                    gradient = weight * gradient
                    if len(found) == i:
                        found.append((value, gradient))
                    else:
                        found[i] = (found[i][0] + value, found[i][1] + gradient)
        return found


@dataclass(frozen=True)
class Scoring:
    """Scores of each batch by scorer, and those that threads have under way."""

    parts: dict[str, list[Tensor]]
    pending: dict[str, list[Future[Tensor]]]

    def scores(self, device: torch.device) -> dict[str, Tensor]:
        """All scores (N,) by scorer, on ``device``, after waiting for them; what a scorer raised is raised here."""
        found: dict[str, Tensor] = {}
        for name, parts in self.parts.items():
            parts = parts + [part.result() for part in self.pending.get(name, ())]
            found[name] = torch.cat([part.to(device) for part in parts])
        return found


def load_rewards(specs: Sequence[RewardParams], device: torch.device, root: Path) -> RewardModels:
    """Load the scorers one after the other, each tried by the golden check before the next one; see `load_reward`."""
    rewards: dict[str, Reward] = {}
    for spec in specs:
        rewards[spec.name] = load_reward(spec, device, root)
        check_rewards([rewards[spec.name]], root)
        if spec.offload:
            rewards[spec.name].to(CPU)
    return reward_models_of(specs, rewards, device)


def reward_models_of(
    specs: Sequence[RewardParams], rewards: Mapping[str, Reward], device: torch.device
) -> RewardModels:
    """The loaded scorers of ``specs``, the offloaded ones on the host."""
    offloaded = frozenset(spec.name for spec in specs if spec.offload)
    return RewardModels(rewards, device, offloaded, frozenset(spec.name for spec in specs if has_thread(spec, device)))


def has_thread(spec: RewardParams, device: torch.device) -> bool:
    """Whether a scorer has a thread: where it passes no gradient, leaves ``device`` idle and is not offloaded, which
    gives it a turn of its own. On the CPU only another process does; here a thread would take from the others' time."""
    return not spec.differentiable and not spec.offload and (spec.socket is not None or device.type != "cpu")
